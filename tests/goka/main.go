// The tutorial's messaging service on Goka itself, for tests that put it beside gokamsg: an emitter, a view and the five
// processors in one binary.
//
//	gokatool emit                        JSON lines {"topic", "key", "value"} from standard input; a null value deletes
//	gokatool view -table T -state DIR    the table as JSON lines {"key", "value"}, in the order of the keys
//	gokatool process -role R -state DIR  one processor, until SIGTERM
//
// What it prints goes to standard output, Goka's log to standard error. Exit code 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
)

// What -tuned sets.
const (
	tunedFlush   = 10 * time.Millisecond
	tunedChannel = 10_000
)

var commands = map[string]func(context.Context, *options) error{
	"emit":    emit,
	"view":    view,
	"process": process,
}

// options are the flags of all commands; each uses those it needs.
type options struct {
	brokers        string
	state          string
	table          string
	role           string
	flush          time.Duration
	commitInterval time.Duration
	sessionTimeout time.Duration
	tuned          bool
	detectMessages int
	detectShare    float64
}

func (o *options) addresses() []string {
	return strings.Split(o.brokers, ",")
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: gokatool emit|view|process [flags]")
		os.Exit(2)
	}
	o := parse(os.Args[1], os.Args[2:])
	goka.ReplaceGlobalConfig(saramaConfig(o))
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := commands[os.Args[1]](ctx, o)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
}

func parse(command string, arguments []string) *options {
	o := &options{}
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	flags.StringVar(&o.brokers, "brokers", "localhost:9092", "bootstrap addresses, separated by commas")
	flags.StringVar(&o.state, "state", "", "directory of the local tables (view, process)")
	flags.StringVar(&o.table, "table", "", "table to show (view)")
	flags.StringVar(&o.role, "role", "", "blocker, translator, collector, filter or detector (process)")
	flags.DurationVar(&o.flush, "flush", 100*time.Millisecond, "how long the producer gathers records")
	flags.DurationVar(&o.commitInterval, "commit-interval", time.Second, "how often offsets are committed")
	flags.DurationVar(&o.sessionTimeout, "session-timeout", 10*time.Second, "silence after which the group goes on without this member")
	flags.BoolVar(&o.tuned, "tuned", false, "larger channels, and batches sent when they are full or 10 ms old: throughput for memory (process)")
	flags.IntVar(&o.detectMessages, "detect-messages", 200, "messages sent and received before a user is judged (detector)")
	flags.Float64Var(&o.detectShare, "detect-share", 0.5, "share of sent messages from which a user is blocked (detector)")
	_ = flags.Parse(arguments)
	if o.tuned {
		o.flush = tunedFlush
	}
	return o
}

// saramaConfig is Goka's own configuration but for what the flags say, and groups that are new start at the oldest
// record, as gokamsg's do.
func saramaConfig(o *options) *sarama.Config {
	config := goka.DefaultConfig()
	config.Version = sarama.V2_0_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Interval = o.commitInterval
	config.Consumer.Group.Session.Timeout = o.sessionTimeout
	config.Consumer.Group.Heartbeat.Interval = min(o.sessionTimeout/6, 3*time.Second)
	config.Producer.Flush.Frequency = o.flush
	if o.tuned {
		config.ChannelBufferSize = tunedChannel
	}
	return config
}
