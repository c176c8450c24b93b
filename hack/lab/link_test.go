package lab

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRateText(t *testing.T) {
	for text, want := range map[string]Rate{"100mbit": 100 * Mbit, "1gbit": Gbit, "64kbit": 64 * Kbit, "1000mbit": Gbit, "none": 0} {
		var r Rate
		if err := r.UnmarshalText([]byte(text)); err != nil || r != want {
			t.Errorf("%s is %v, %v, want %v", text, r, err, want)
		}
	}
	for _, text := range []string{"", "100", "mbit", "-1mbit", "1.5mbit", "1kbit", "11gbit", "100MB", "99999999999gbit", "0mbit", "1 mbit"} {
		var r Rate
		err := r.UnmarshalText([]byte(text))
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), text) {
			t.Errorf("%q gives %v, %v", text, r, err)
		}
	}
}

func TestRateTextIsWhatItReads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := Rate(rapid.Int64Range(int64(minRate/Kbit), int64(maxRate/Kbit)).Draw(t, "kbit")) * Kbit
		text, err := rate.MarshalText()
		var read Rate
		if err == nil {
			err = read.UnmarshalText(text)
		}
		if err != nil || read != rate {
			t.Fatalf("%d is written as %s and read as %d, %v", rate, text, read, err)
		}
	})
}

func TestShape(t *testing.T) {
	for _, c := range []struct {
		rate  Rate
		queue time.Duration
		want  string
	}{
		{0, 0, "qdisc replace dev eth0 root pfifo_fast\n"},
		{100 * Mbit, 0, "qdisc replace dev eth0 root tbf rate 100000000bit burst 71680 limit 1250000\n"},
		{100 * Mbit, 20 * time.Millisecond, "qdisc replace dev eth0 root tbf rate 100000000bit burst 71680 limit 250000\n"},
		{Gbit, 0, "qdisc replace dev eth0 root tbf rate 1000000000bit burst 250000 limit 12500000\n"},
		{Mbit, 0, "qdisc replace dev eth0 root tbf rate 1000000bit burst 71680 limit 143360\n"},
	} {
		if got := shape("eth0", c.rate, c.queue); got != c.want {
			t.Errorf("%v, queue %v: %q, want %q", c.rate, c.queue, got, c.want)
		}
	}
}
