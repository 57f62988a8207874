/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps of the data plane, each with what leads to what. The loader gives them their sizes. */
#ifndef COLO_MAPS_H
#define COLO_MAPS_H

#include "live_frame.h"

/* 0 -> what the VM may do now. Memory-mapped by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct colo_state);
} state_map SEC(".maps");

/* enum colo_counter -> frames, one number for each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COLO_COUNTERS);
	__type(key, enum colo_counter);
	__type(value, __u64);
} counters SEC(".maps");

/* TCP connection -> by how much the secondary's numbers differ from those the client knows. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct colo_connection_key);
	__type(value, struct colo_connection);
} connections SEC(".maps");

/* The ring of one worker, a value of the next three maps. */
struct worker_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

/* Worker -> held frames of the primary VM, in the order it sent them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct worker_ring);
} primary_rings SEC(".maps");

/* Worker -> frames of the secondary VM, in the order they arrived on the primary's host. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct worker_ring);
} secondary_rings SEC(".maps");

/* Worker -> tokens that wake it; their content has no meaning. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct worker_ring);
} doorbell_rings SEC(".maps");

/* Tap -> input of the primary VM that arrived during a checkpoint; the first worker replays it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024);
} input_ring SEC(".maps");

/* Worker -> the frames of its next run of release_frames. Memory-mapped by the worker. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct colo_live_list);
} live_lists SEC(".maps");

/* 0 -> the frame that a run is releasing, one for each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct live_frame);
} live_frames SEC(".maps");

#endif
