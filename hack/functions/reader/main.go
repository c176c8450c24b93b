// Command reader is a function of the contract "http" that reads /data of its image before it is ready. It answers with its host's name, and ends
// its answer when the request's body ends.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	data, err := os.Open("/data")
	if err == nil {
		_, err = io.Copy(io.Discard, data)
	}
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if err := control.EnableFullDuplex(); err != nil {
			log.Print(err)
		}
		name, err := os.Hostname()
		fmt.Fprintln(w, name, err)
		if err := control.Flush(); err != nil {
			log.Print(err)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			log.Print(err)
		}
	})))
}
