package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/lovoo/goka"
	"github.com/lovoo/goka/storage"
)

// process runs one role until the context ends. Whenever the group has assigned partitions it prints them, and once
// their tables are recovered it prints "ROLE: running, partitions (0, 1)", or "ROLE: stopped" when it gives them up.
func process(ctx context.Context, o *options) error {
	define := roles[o.role]
	if define == nil {
		return fmt.Errorf("there is no role %q", o.role)
	}
	if o.state == "" {
		return fmt.Errorf("-state must name the directory of the local tables")
	}
	held := &holding{}
	channelSize := 10 // Goka's default
	if o.tuned {
		channelSize = tunedChannel
	}
	processor, err := goka.NewProcessor(
		o.addresses(),
		define(o),
		goka.WithPartitionChannelSize(channelSize),
		goka.WithStorageBuilder(storage.DefaultBuilder(o.state)),
		goka.WithTopicManagerBuilder(goka.TopicManagerBuilderWithTopicManagerConfig(topicManagerConfig())),
		goka.WithRebalanceCallback(func(assignment goka.Assignment) {
			held.set(assignment)
			fmt.Printf("%s: assigned, partitions %s\n", o.role, held)
		}),
	)
	if err != nil {
		return err
	}
	states := processor.StateReader().ObserveStateChange()
	defer states.Stop()
	go func() {
		for state := range states.C() {
			switch state {
			case goka.State(goka.ProcStateRunning):
				fmt.Printf("%s: running, partitions %s\n", o.role, held)
			case goka.State(goka.ProcStateStopped):
				fmt.Printf("%s: stopped\n", o.role)
			}
		}
	}()
	return processor.Run(ctx)
}

// topicManagerConfig makes tables and loops that a cluster of one broker can have.
func topicManagerConfig() *goka.TopicManagerConfig {
	config := goka.NewTopicManagerConfig()
	config.Table.Replication = 1
	config.Stream.Replication = 1
	return config
}

// holding is the latest assignment; written by Goka's session and read by whoever prints it.
type holding struct {
	lock       sync.Mutex
	partitions []int32
}

func (h *holding) set(assignment goka.Assignment) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.partitions = h.partitions[:0]
	for partition := range assignment {
		h.partitions = append(h.partitions, partition)
	}
	slices.Sort(h.partitions)
}

func (h *holding) String() string {
	h.lock.Lock()
	defer h.lock.Unlock()
	numbers := make([]string, len(h.partitions))
	for index, partition := range h.partitions {
		numbers[index] = fmt.Sprint(partition)
	}
	return "(" + strings.Join(numbers, ", ") + ")"
}
