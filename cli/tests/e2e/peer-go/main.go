// A peer that is not ours: hashicorp/yamux, and gorilla/websocket under it as Radar connectors
// have it. Built by the end-to-end tests from the distribution's packages, without a network.
//
//	peer connect [-backlog n] [-keepalive d] [-paused] <ws url> <token>   the connector: yamux server
//	peer open <host:port>                                                 the other role, over TCP
//
// SIGUSR1 ends -paused; SIGTERM says GoAway and ends when the last stream has.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

func main() {
	log.SetOutput(os.Stdout)
	log.SetFlags(log.Lmicroseconds)
	if len(os.Args) < 2 {
		log.Fatal("usage: peer connect|open ...")
	}
	var err error
	switch os.Args[1] {
	case "connect":
		err = connect(os.Args[2:])
	case "open":
		err = open(os.Args[2])
	default:
		err = fmt.Errorf("unknown role %q", os.Args[1])
	}
	if err != nil {
		log.Fatalf("peer failed: %v", err)
	}
	log.Print("peer done")
}

// --- the connector ---

func connect(arguments []string) error {
	flags := flag.NewFlagSet("connect", flag.ExitOnError)
	backlog := flags.Int("backlog", 256, "streams that wait to be accepted; more are reset")
	keepalive := flags.Duration("keepalive", 30*time.Second, "between pings")
	paused := flags.Bool("paused", false, "accept nothing before SIGUSR1")
	flags.Parse(arguments)
	field := http.Header{
		"Authorization":                  {"Bearer " + flags.Arg(1)},
		"X-Radar-Version":                {"1.4.0"},
		"X-Radar-Self-Upgrade-Available": {"false"},
	}
	ws, _, err := websocket.DefaultDialer.Dial(flags.Arg(0), field)
	if err != nil {
		return err
	}
	config := configuration()
	config.AcceptBacklog = *backlog
	config.KeepAliveInterval = *keepalive
	session, err := yamux.Server(&messages{ws: ws}, config)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGTERM)
	if *paused {
		log.Print("paused")
		if <-signals != syscall.SIGUSR1 {
			return fmt.Errorf("ended while paused")
		}
	}
	go drain(session, signals)
	log.Print("serving")
	// Accept fails when the session ends; that is the end of a connector.
	http.Serve(session, routes())
	return nil
}

func configuration() *yamux.Config {
	config := yamux.DefaultConfig()
	config.MaxStreamWindowSize = 4 << 20
	config.LogOutput = os.Stdout
	return config
}

func drain(session *yamux.Session, signals chan os.Signal) {
	for s := range signals {
		if s != syscall.SIGTERM {
			continue
		}
		if err := session.GoAway(); err != nil {
			log.Fatalf("GoAway: %v", err)
		}
		log.Print("draining")
		for session.NumStreams() > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		log.Print("drained")
		session.Close()
	}
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/id/", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.Path[len("/id/"):])
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%d %s %v", n, hex.EncodeToString(sum.Sum(nil)), err)
	})
	mux.HandleFunc("/pattern/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Path[len("/pattern/"):])
		w.Write(pattern(n))
	})
	mux.HandleFunc("/hold/", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.URL.Path[len("/hold/"):])
		time.Sleep(time.Duration(ms) * time.Millisecond)
		io.WriteString(w, "held")
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 0; n < 5; n++ {
			fmt.Fprintf(w, "data: %d\n\n", n)
			w.(http.Flusher).Flush()
			time.Sleep(200 * time.Millisecond)
		}
	})
	mux.HandleFunc("/raw", raw)
	return mux
}

// raw changes the protocol, reads to the other side's half-close, and only then answers.
func raw(w http.ResponseWriter, r *http.Request) {
	conn, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		log.Fatalf("hijack: %v", err)
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
	sum := sha256.New()
	n, err := io.Copy(sum, buffered)
	fmt.Fprintf(conn, "%d %s %v", n, hex.EncodeToString(sum.Sum(nil)), err)
}

// messages is a byte stream over binary messages.
type messages struct {
	ws     *websocket.Conn
	reader io.Reader
}

func (m *messages) Read(b []byte) (int, error) {
	for {
		if m.reader == nil {
			kind, reader, err := m.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("a message of type %d", kind)
			}
			m.reader = reader
		}
		n, err := m.reader.Read(b)
		if err == io.EOF {
			m.reader = nil
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (m *messages) Write(b []byte) (int, error) {
	return len(b), m.ws.WriteMessage(websocket.BinaryMessage, b)
}

func (m *messages) Close() error {
	return m.ws.Close()
}

// --- the other role ---

const (
	opens     = 300 // more than may wait for their ACK: the 257th blocks unless each is acknowledged at once
	transfers = 100
	size      = 1 << 20
)

func open(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	config := configuration()
	config.KeepAliveInterval = 100 * time.Millisecond
	session, err := yamux.Client(conn, config)
	if err != nil {
		return err
	}
	began := time.Now()
	var silent []net.Conn
	for n := 0; n < opens; n++ {
		stream, err := session.Open()
		if err != nil {
			return fmt.Errorf("open %d: %w", n, err)
		}
		silent = append(silent, stream)
	}
	log.Printf("%d streams are open after %v", opens, time.Since(began))
	if err := transfer(session); err != nil {
		return err
	}
	for _, stream := range silent {
		stream.Close()
	}
	if _, err := session.Ping(); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	if err := session.GoAway(); err != nil {
		return fmt.Errorf("GoAway: %w", err)
	}
	time.Sleep(500 * time.Millisecond)
	if session.IsClosed() {
		return fmt.Errorf("GoAway 0 ended the session")
	}
	return session.Close()
}

// transfer sends on many streams at once and compares what comes back. Odd ones are half-closed
// by the other side after its part, and go on writing then.
func transfer(session *yamux.Session) error {
	var group sync.WaitGroup
	failures := make(chan error, transfers)
	for n := 0; n < transfers; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			if err := one(session, n); err != nil {
				failures <- fmt.Errorf("stream %d: %w", n, err)
			}
		}(n)
	}
	group.Wait()
	close(failures)
	return <-failures
}

func one(session *yamux.Session, n int) error {
	stream, err := session.Open()
	if err != nil {
		return err
	}
	defer stream.Close()
	data := pattern(size)
	verb := []byte{'e', 'd'}[n%2]
	if _, err := stream.Write([]byte{verb}); err != nil {
		return err
	}
	if verb == 'e' {
		go stream.Write(data)
	}
	got := make([]byte, size)
	if _, err := io.ReadFull(stream, got); err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	if string(got) != string(data) {
		return fmt.Errorf("other bytes came back")
	}
	if verb == 'e' {
		return nil
	}
	if n, err := stream.Read(got); n != 0 || err != io.EOF {
		return fmt.Errorf("%d, %v where its end was due", n, err)
	}
	_, err = stream.Write(data)
	return err
}

func pattern(n int) []byte {
	data := make([]byte, n)
	for place := range data {
		data[place] = byte(uint32(place) * 2654435761 >> 24)
	}
	return data
}
