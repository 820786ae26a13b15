/* backend: where the tensors live and who computes. engine/forward.c is written once against this table; a backend is
 * one const table and one file (backend_cpu.c). Every entry is set. Shapes and maths of an operation stand in its header
 * in kernels/. Operations are enqueued in order; sync reports what they hid. Errors: ERR_DEVICE, ERR_MEMORY. */
#ifndef ENGINE_BACKEND_H
#define ENGINE_BACKEND_H
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/logits.h"
#include "kernels/rmsnorm.h"

struct backend;

struct backend_opts {
    int threads;     /* 0: every core this process may run on */
    const char *isa; /* "auto", "avx512", "avx2", "portable" */
};

struct backend_ops {
    const char *name; /* "cpu" */
    int  (*open)(struct backend *be, const struct backend_opts *opts);
    void (*close)(struct backend *be); /* frees every allocation; accepts a backend that failed to open */
    int  (*alloc)(struct backend *be, size_t bytes, void **out); /* zeroed, 64-byte aligned */
    void (*release)(struct backend *be, void *p); /* gives an allocation back before close; NULL is fine */
    int  (*upload)(struct backend *be, void *dst, const void *src, size_t bytes);
    int  (*download)(struct backend *be, void *dst, const void *src, size_t bytes);
    /* Allocate and prepare a weight matrix in this backend's order. */
    int  (*matrix)(struct backend *be, struct matrix *w, int k, const struct matrix_part *parts, int n_parts,
                   enum matrix_flags flags);
    int  (*embed)(struct backend *be, const struct embed *a);
    int  (*rmsnorm)(struct backend *be, const struct rmsnorm *a);
    int  (*gemm)(struct backend *be, const struct gemm *a);
    int  (*swiglu)(struct backend *be, const struct gemm *a);
    int  (*rope_table)(struct backend *be, const struct rows *rows, const float *inv_freq, int head_dim, float *cos_sin);
    int  (*rope)(struct backend *be, const struct rope *a);
    int  (*attention)(struct backend *be, const struct attention *a);
    int  (*kv_move)(struct backend *be, const struct kv_move *a);
    int  (*logits)(struct backend *be, const struct logits *a);
    int  (*sync)(struct backend *be);
};

struct backend {
    const struct backend_ops *ops;
    void *self;           /* the backend's own state */
    int threads;          /* host threads it computes with */
    size_t kv_bytes;      /* of one element of the key/value cache */
    size_t allocated;     /* bytes handed out and not released */
    char device[128];     /* what computes, for people: "AMD EPYC 9654 (avx512, 2 threads)" */
    char isa[16];         /* "avx512" */
};

extern const struct backend_ops backend_cpu;
/* By name ("cpu"); ERR_CONFIG lists the names. */
int  backend_open(struct backend *be, const char *kind, const struct backend_opts *opts);
void backend_close(struct backend *be); /* a zeroed struct is fine */
#endif
