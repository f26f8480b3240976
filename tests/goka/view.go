package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
	"github.com/lovoo/goka/storage"
)

type row struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// view prints the table as it is once it is recovered.
func view(ctx context.Context, o *options) error {
	if o.table == "" || o.state == "" {
		return fmt.Errorf("-table and -state are needed")
	}
	table, err := goka.NewView(
		o.addresses(),
		goka.Table(o.table),
		new(codec.Bytes),
		goka.WithViewStorageBuilder(storage.DefaultBuilder(o.state)),
	)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- table.Run(ctx) }()
	select {
	case <-table.WaitRunning():
	case err := <-ended:
		return err
	}
	err = dump(table)
	cancel()
	if stopped := <-ended; err == nil {
		err = stopped
	}
	return err
}

func dump(table *goka.View) error {
	rows, err := table.Iterator()
	if err != nil {
		return err
	}
	defer rows.Release()
	out := bufio.NewWriter(os.Stdout)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	for rows.Next() {
		value, err := rows.Value()
		if err != nil {
			return err
		}
		if err := lines.Encode(row{Key: rows.Key(), Value: string(value.([]byte))}); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return out.Flush()
}
