package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
)

type line struct {
	Topic string
	Key   string
	Value *string
}

// emit sends standard input, each topic through an emitter of its own, and prints how many records were acknowledged.
func emit(_ context.Context, o *options) error {
	emitters := map[string]*goka.Emitter{}
	var failures failed
	count := 0
	input := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var next line
		err := input.Decode(&next)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", count+1, err)
		}
		emitter := emitters[next.Topic]
		if emitter == nil {
			emitter, err = goka.NewEmitter(o.addresses(), goka.Stream(next.Topic), new(codec.Bytes))
			if err != nil {
				return err
			}
			emitters[next.Topic] = emitter
		}
		var value any
		if next.Value != nil {
			value = []byte(*next.Value)
		}
		promise, err := emitter.Emit(next.Key, value)
		if err != nil {
			return fmt.Errorf("line %d: %w", count+1, err)
		}
		promise.Then(failures.add)
		count++
	}
	for _, emitter := range emitters {
		failures.add(emitter.Finish())
	}
	if err := failures.all(); err != nil {
		return err
	}
	fmt.Printf("%d emitted\n", count)
	return nil
}

// failed gathers errors from the producers' threads.
type failed struct {
	lock sync.Mutex
	errs []error
}

func (f *failed) add(err error) {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.errs = append(f.errs, err)
}

func (f *failed) all() error {
	f.lock.Lock()
	defer f.lock.Unlock()
	return errors.Join(f.errs...)
}
