/* backend: where the tensors live and who computes. engine/forward.c is written once against this table; a backend is
 * one const table and one file (backend_cpu.c, backend_cuda.c). Every entry is set. Shapes and maths of an operation stand in
 * its header in kernels/. Operations are enqueued in order; sync reports what they hid. Errors: ERR_DEVICE, ERR_MEMORY. */
#ifndef ENGINE_BACKEND_H
#define ENGINE_BACKEND_H
#include "engine/comm.h"
#include "kernels/accept.h"
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gather.h"
#include "kernels/gemm.h"
#include "kernels/grow.h"
#include "kernels/logits.h"
#include "kernels/moe.h"
#include "kernels/node_stats.h"
#include "kernels/ngram.h"
#include "kernels/quantise.h"
#include "kernels/reduce.h"
#include "kernels/rmsnorm.h"
#include "kernels/step.h"
#include "kernels/top.h"
#include <stdio.h>

struct backend;

struct backend_opts {
    int threads;     /* of the host; 0: every core this process may run on */
    const char *isa; /* of the CPU kernels: "auto", "avx512", "avx2", "portable"; others ignore it */
    int device;      /* which GPU, from 0; the CPU ignores it */
    int eager;       /* 1: passes are enqueued operation by operation, never as a recorded graph; the CPU ignores it */
};

/* The product of a vendor's library that ours are compared with. What the operands hold does not matter, their sizes do. */
struct rival {
    int n, k, rows;
    enum matrix_form form;     /* of both operands: its FP8 products have FP8 inputs */
    int accumulate;            /* y += */
    const void *w, *x;         /* [n, k]; [rows, k], room for 16 rows at least */
    void *scratch;             /* [bytes] the result and whatever the library needs */
    size_t bytes;              /* out of rival_ask */
    int choices, choice;       /* out of rival_ask: ways that it proposes; which one, from 0 */
};

/* What a device runs at now. */
struct backend_clocks {
    int mhz, memory_mhz; /* 0: not known */
    char slowed_by[96];  /* "nothing", "power cap, temperature"; "": not known */
};

/* What a pass is recorded under: all operations between pass_begin and pass_end are the same whenever the key is. */
struct pass_key {
    const void *owner; /* whose buffers they name */
    int rows, reach;
    unsigned flags;
};

struct backend_ops {
    const char *name; /* "cpu", "cuda" */
    void (*describe)(FILE *out); /* what this machine has of it, or why it cannot be used, in lines for people */
    int  (*open)(struct backend *be, const struct backend_opts *opts);
    void (*close)(struct backend *be); /* frees every allocation; accepts a backend that failed to open */
    int  (*alloc)(struct backend *be, size_t bytes, void **out); /* zeroed, 64-byte aligned */
    int  (*alloc_host)(struct backend *be, size_t bytes, void **out); /* zeroed memory of the host that download reaches fastest */
    void (*release)(struct backend *be, void *p); /* gives either back before close; NULL is fine */
    size_t (*available)(struct backend *be);      /* bytes that alloc can still give; SIZE_MAX: nobody knows */
    int  (*upload)(struct backend *be, void *dst, const void *src, size_t bytes); /* src may change after the call */
    int  (*download)(struct backend *be, void *dst, const void *src, size_t bytes); /* dst is whole after sync */
    /* Allocate and prepare a weight matrix in this backend's order. */
    int  (*matrix)(struct backend *be, struct matrix *w, const struct matrix_source *from);
    /* Bytes of an act, and of the scratch that one pass lends to its products and to its attention. */
    size_t (*act_bytes)(const struct backend *be, int rows, int k);
    size_t (*gemm_bytes)(const struct backend *be, int rows, int n, int k); /* for a matrix [n, k] and at most so many rows */
    size_t (*kv_bytes)(const struct backend *be, enum kv_form form); /* of one element of the key/value cache */
    size_t (*attention_bytes)(const struct backend *be, int rows, int heads, int kv_heads, int head_dim, int cap);
    size_t (*moe_bytes)(const struct backend *be, int rows, int hidden, int ffn, int experts, int top_k); /* scratch of moe */
    size_t (*accept_bytes)(const struct backend *be, int slots, int max_nodes, int vocab); /* scratch of accept */
    int  (*embed)(struct backend *be, const struct embed *a);
    int  (*rmsnorm)(struct backend *be, const struct rmsnorm *a);
    int  (*gemm)(struct backend *be, const struct gemm *a);
    int  (*swiglu)(struct backend *be, const struct gemm *a);
    int  (*residual)(struct backend *be, const struct residual *a);
    int  (*qkv)(struct backend *be, const struct qkv *a);
    int  (*quantise)(struct backend *be, const struct quantise *a);
    int  (*rope_table)(struct backend *be, const struct rows *rows, const float *inv_freq, int head_dim, float *cos_sin);
    int  (*rope_temperature)(struct backend *be, const struct temperature *a);
    int  (*attention)(struct backend *be, const struct attention *a);
    int  (*route)(struct backend *be, const struct route *a);
    int  (*moe)(struct backend *be, const struct moe *a);
    int  (*kv_move)(struct backend *be, const struct kv_move *a);
    int  (*logits)(struct backend *be, const struct logits *a);
    int  (*gather)(struct backend *be, const struct gather *a);
    int  (*top)(struct backend *be, const struct top *a);
    /* Make this backend a rank of c's group, with room for parts of so many bytes (struct reduce, struct allgather); every rank calls it, each from
     * its own thread, while nothing is under way, and again with c = &be->comm when parts grow (fewer bytes change nothing). From then on sync
     * and poll also report the failure of another rank, within c's patience. */
    int  (*join)(struct backend *be, const struct comm *c, size_t bytes);
    int  (*reduce)(struct backend *be, const struct reduce *a);
    int  (*allgather)(struct backend *be, const struct allgather *a);
    /* The operations of a step around its pass; kernels/step.h. */
    int  (*ngram)(struct backend *be, const struct ngram *a);
    int  (*grow_true)(struct backend *be, const struct grow *a);
    int  (*grow_level)(struct backend *be, const struct grow *a, int level);
    int  (*step_plan)(struct backend *be, const struct step *s, int rows);
    int  (*step_commit)(struct backend *be, const struct step_commit *a);
    int  (*stamp)(struct backend *be, int64_t *at); /* *at = the time on the clock of enum step_clock; memory of the backend, or alloc_host's */
    int  (*accept)(struct backend *be, const struct accept *a);
    int  (*node_stats)(struct backend *be, const struct node_stats *a);
    int  (*read)(struct backend *be, const void *data, size_t bytes, uint64_t *sum); /* kernels/read.h; sum is backend memory */
    /* Around the operations of a pass that will come again. *recorded 1: they were recorded under this key and have been enqueued as
     * one graph, so the caller leaves them out. 0: enqueue them, then pass_end with 0 or the error that stopped them, which it returns. */
    int  (*pass_begin)(struct backend *be, struct pass_key key, int *recorded);
    int  (*pass_end)(struct backend *be, int error);
    void (*pass_forget)(struct backend *be, const void *owner); /* before the owner's buffers go */
    int  (*sync)(struct backend *be);
    int  (*poll)(struct backend *be, int *idle); /* without waiting: an error that happened, and 1 when all that was enqueued is done */
    /* Time stamps behind whatever was enqueued before them, outside of passes that are recorded: stamp i of [0, BACKEND_MARKS); after a sync
     * marks gives stamps 0..n-1, all of them set since, in ns from an origin of their own. */
    int  (*mark)(struct backend *be, int i);
    int  (*marks)(struct backend *be, int n, int64_t *ns);
    void (*clocks)(struct backend *be, struct backend_clocks *out); /* waits for no operation */
    int  (*rival_ask)(struct backend *be, struct rival *a); /* choices 0: there is no such library for this backend or this shape */
    int  (*rival)(struct backend *be, const struct rival *a);
};
enum { BACKEND_MARKS = 1025 };

struct backend {
    const struct backend_ops *ops;
    void *self;           /* the backend's own state */
    struct comm comm;     /* its place in the group it joined; world 0: none */
    int threads;          /* host threads it computes or prepares weights with */
    int host_reads;       /* 1: the host may read and write its memory once sync has returned */
    int transposes;       /* 1: matrix() takes parts whose columns lie apart, their rows side by side; 0: best arranged before */
    int counts;           /* 1: it holds no numbers, so none are read for it: engine/model_plan.c */
    int prefill_rows;     /* rows that a pass of prefill best has */
    int ahead;            /* steps best enqueued behind the one that is waited for; 0 where operations run when called */
    size_t allocated;     /* bytes of alloc handed out and not released */
    size_t allocs;        /* calls of alloc and alloc_host */
    size_t syncs;         /* times the host waited for the device: sync, and uploads that found every buffer in use */
    size_t launches;      /* operations of the device enqueued so far; those of a recorded pass count once, when it is recorded */
    size_t cache_bytes;   /* of its last-level cache, 0: not known */
    int clock_mhz, memory_mhz; /* the most it runs at, 0: not known */
    char device[128];     /* what computes, for people: "AMD EPYC 9654 (avx512, 2 threads)" */
    char isa[16];         /* "avx512", "sm_90" */
};

extern const struct backend_ops backend_cpu;
extern const struct backend_ops backend_cuda; /* a build without CUDA has one whose open says so */
/* All of them, NULL after the last. */
extern const struct backend_ops *const backends_all[];

/* By name; ERR_CONFIG lists the names. */
int  backend_open(struct backend *be, const char *kind, const struct backend_opts *opts);
void backend_close(struct backend *be); /* a zeroed struct is fine */
/* Zeroed memory of the backend for n things of `size` bytes, one at least; out is the address of a pointer to whatever they are. */
int  backend_take(struct backend *be, size_t n, size_t size, void *out);
/* For backends: opts->threads with 0 resolved. ERR_CONFIG when it is out of range. */
int  backend_threads(const struct backend_opts *opts, int *out);
#endif
