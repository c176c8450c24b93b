// Command http is a function of the contract "http" for tests and benchmarks. Its paths say what it does.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if os.Getenv("INIT") == "never" {
		time.Sleep(time.Hour)
	}
	handleSIGTERM(os.Getenv("SIGTERM"))
	http.HandleFunc("/echo", echo)
	http.HandleFunc("/headers", headers)
	http.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Hour):
		case <-r.Context().Done():
			fmt.Println("cancelled")
		}
	})
	http.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Xylem-Failure", "Forged")
		w.WriteHeader(http.StatusTeapot)
	})
	http.HandleFunc("/garbage", func(w http.ResponseWriter, _ *http.Request) { hijacked(w, "what?\r\n\r\n") })
	http.HandleFunc("/partial", func(w http.ResponseWriter, _ *http.Request) {
		hijacked(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
	})
	http.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) {
		fmt.Fprintln(os.Stderr, "leaving")
		os.Exit(7)
	})
	ln, err := net.Listen("tcp", ":"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/deaf", func(http.ResponseWriter, *http.Request) { ln.Close() })
	err = http.Serve(ln, nil)
	fmt.Println("deaf", err)
	time.Sleep(time.Hour)
}

func handleSIGTERM(how string) {
	c := make(chan os.Signal, 1)
	switch how {
	case "ignore":
		signal.Ignore(syscall.SIGTERM)
	case "print":
		signal.Notify(c, syscall.SIGTERM)
		go func() {
			<-c
			fmt.Println("told to end")
			os.Exit(0)
		}()
	}
}

// echo sends every piece of the request back as it comes, and a trailer.
func echo(w http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(w)
	_ = flush.EnableFullDuplex()
	w.Header().Set("Trailer", "Echo-Bytes")
	w.WriteHeader(http.StatusOK)
	_ = flush.Flush()
	buf := make([]byte, 64<<10)
	total := 0
	for {
		n, err := r.Body.Read(buf)
		w.Write(buf[:n])
		_ = flush.Flush()
		total += n
		if err != nil {
			break
		}
	}
	w.Header().Set("Echo-Bytes", fmt.Sprint(total))
}

// headers answers with what was asked.
func headers(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "url": r.URL.String(), "host": r.Host, "header": r.Header, "body": string(body)})
}

func hijacked(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		io.WriteString(conn, text)
		conn.Close()
	}
}
