// Go with gorilla/websocket, as its chat example does it: a goroutine to read and one to write for each connection, and
// one that owns all state. usage: PORT echo|relay
package main

import (
	"bytes"
	"log"
	"net/http"
	"os"

	"github.com/gorilla/websocket"
)

type client struct {
	ws  *websocket.Conn
	out chan []byte
}

type event struct {
	from    *client
	message []byte
	gone    bool
}

var (
	events   = make(chan event)
	upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
)

func read(c *client) {
	for {
		_, message, err := c.ws.ReadMessage()
		if err != nil {
			events <- event{from: c, gone: true}
			return
		}
		events <- event{from: c, message: message}
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // it has answered
	}
	c := &client{ws, make(chan []byte, 256)}
	go read(c)
	for message := range c.out {
		if ws.WriteMessage(websocket.BinaryMessage, message) != nil {
			break // the reader meets the same error, and says so
		}
	}
	ws.Close()
}

func main() {
	relay := os.Args[2] == "relay"
	go func() { log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(serve))) }()
	subscribers := map[string]map[*client]bool{}
	for e := range events {
		if e.gone {
			for _, several := range subscribers {
				delete(several, e.from)
			}
			close(e.from.out)
			continue
		}
		if !relay {
			e.from.out <- e.message
			continue
		}
		parts := bytes.SplitN(e.message, []byte(":"), 3)
		channel := string(parts[1])
		e.from.out <- []byte("OK")
		if string(parts[0]) == "subscribe" {
			if subscribers[channel] == nil {
				subscribers[channel] = map[*client]bool{}
			}
			subscribers[channel][e.from] = true
			continue
		}
		for c := range subscribers[channel] {
			c.out <- parts[2]
		}
	}
}
