package main

import (
	"encoding/json"
	"fmt"
)

// Message is what is said. Its fields have no tags, so Go's names and their order are the format.
type Message struct {
	From    string
	To      string
	Content string
}

// BlockEvent says that a user is to be blocked, or unblocked.
type BlockEvent struct {
	Unblock bool
}

// BlockValue is a user's row in blocker-table.
type BlockValue struct {
	Blocked bool
}

// Counters is a user's row in detector-table.
type Counters struct {
	Sent     int
	Received int
}

// jsonCodec reads and writes values of T with encoding/json.
type jsonCodec[T any] struct{}

func (jsonCodec[T]) Encode(value any) ([]byte, error) {
	typed, ok := value.(T)
	if !ok {
		return nil, fmt.Errorf("a value of type %T, not %T", value, typed)
	}
	return json.Marshal(typed)
}

func (jsonCodec[T]) Decode(data []byte) (any, error) {
	var value T
	if err := json.Unmarshal(data, &value); err != nil {
		return nil, err
	}
	return value, nil
}
