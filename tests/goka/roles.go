package main

import (
	"strings"

	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
)

const (
	sent       goka.Stream = "message_sent"
	received   goka.Stream = "message_received"
	blockUser  goka.Stream = "block_user"
	translated goka.Stream = "translate-word"

	blocker    goka.Group = "blocker"
	translator goka.Group = "translator"
	collector  goka.Group = "collector"
	filter     goka.Group = "message_filter"
	detector   goka.Group = "detector"

	feedLength = 5
)

var (
	messages    = jsonCodec[Message]{}
	feeds       = jsonCodec[[]Message]{}
	blockEvents = jsonCodec[BlockEvent]{}
	blockValues = jsonCodec[BlockValue]{}
	counters    = jsonCodec[Counters]{}
	words       = new(codec.String)
)

var roles = map[string]func(*options) *goka.GroupGraph{
	"blocker":    blockerGraph,
	"translator": translatorGraph,
	"collector":  collectorGraph,
	"filter":     filterGraph,
	"detector":   detectorGraph,
}

func blockerGraph(*options) *goka.GroupGraph {
	block := func(ctx goka.Context, value any) {
		ctx.SetValue(BlockValue{Blocked: !value.(BlockEvent).Unblock})
	}
	return goka.DefineGroup(blocker, goka.Input(blockUser, blockEvents, block), goka.Persist(blockValues))
}

func translatorGraph(*options) *goka.GroupGraph {
	remember := func(ctx goka.Context, value any) { ctx.SetValue(value) }
	return goka.DefineGroup(translator, goka.Input(translated, words, remember), goka.Persist(words))
}

func collectorGraph(*options) *goka.GroupGraph {
	collect := func(ctx goka.Context, value any) {
		feed, _ := ctx.Value().([]Message)
		feed = append(feed, value.(Message))
		ctx.SetValue(feed[max(0, len(feed)-feedLength):])
	}
	return goka.DefineGroup(collector, goka.Input(received, messages, collect), goka.Persist(feeds))
}

func filterGraph(*options) *goka.GroupGraph {
	blocked, dictionary := goka.GroupTable(blocker), goka.GroupTable(translator)
	pass := func(ctx goka.Context, value any) {
		if row, found := ctx.Join(blocked).(BlockValue); found && row.Blocked {
			return
		}
		message := value.(Message)
		said := strings.Split(message.Content, " ")
		for index, word := range said {
			if other, found := ctx.Lookup(dictionary, word).(string); found {
				said[index] = other
			}
		}
		message.Content = strings.Join(said, " ")
		ctx.Emit(received, message.To, message)
	}
	return goka.DefineGroup(
		filter,
		goka.Input(sent, messages, pass),
		goka.Output(received, messages),
		goka.Join(blocked, blockValues),
		goka.Lookup(dictionary, words),
	)
}

func detectorGraph(o *options) *goka.GroupGraph {
	count := func(ctx goka.Context, add func(*Counters)) {
		counted, _ := ctx.Value().(Counters)
		add(&counted)
		ctx.SetValue(counted)
		total := counted.Sent + counted.Received
		if total >= o.detectMessages && float64(counted.Sent)/float64(total) >= o.detectShare {
			ctx.Emit(blockUser, ctx.Key(), BlockEvent{})
		}
	}
	says := func(ctx goka.Context, value any) {
		count(ctx, func(counted *Counters) { counted.Sent++ })
		ctx.Loopback(value.(Message).To, value)
	}
	hears := func(ctx goka.Context, _ any) {
		count(ctx, func(counted *Counters) { counted.Received++ })
	}
	return goka.DefineGroup(
		detector,
		goka.Input(sent, messages, says),
		goka.Loop(messages, hears),
		goka.Output(blockUser, blockEvents),
		goka.Persist(counters),
	)
}
