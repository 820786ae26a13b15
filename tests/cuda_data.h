/* cuda_data: what tests of kernels give them: memory of host and device, and packed weights. All fail the test instead of returning an error. */
#ifndef TESTS_CUDA_DATA_H
#define TESTS_CUDA_DATA_H
#include "kernels/cuda.h"
#include "tests/cuda_suite.h"
#include <stdlib.h>
#include <string.h>

enum { UNTOUCHED = 0xa5 };

static inline void *alloc(size_t bytes) /* zeroed */
{
    void *p = calloc(1, bytes);
    ck_assert_ptr_nonnull(p);
    return p;
}

/* from NULL: every byte UNTOUCHED. */
static inline void *to_device(const void *from, size_t bytes)
{
    void *p = NULL;
    cuda_ok(cudaMalloc(&p, bytes), "allocating");
    cuda_ok(from ? cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice) : cudaMemset(p, UNTOUCHED, bytes),
            "uploading");
    return p;
}

static inline void from_device(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "running the kernels or downloading");
}

/* 32 bits of a stream. */
static inline uint32_t hash(uint32_t stream, size_t i)
{
    uint32_t h = (uint32_t)i * 0x9E3779B9u ^ stream * 0x85EBCA6Bu;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    return h ^ h >> 15;
}

/* The binary16 of a multiple of 1/64 below 16. */
static inline uint16_t f16_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return f == 0 ? 0
                  : (uint16_t)((u >> 16 & 0x8000u) | ((u >> 23 & 0xffu) - 112) << 10 | (u >> 13 & 0x3ffu));
}

/* w [n, k] as the kernels read it; interleaved: the upper half of the outputs is G, the lower U. */
static inline struct matrix matrix_of(const float *w, int n, int k, enum matrix_form form,
                                      enum matrix_flags flags, int head_dim)
{
    const size_t bytes = matrix_cuda_bytes(n, k, form);
    const int parts = flags == MATRIX_INTERLEAVE ? 2 : 1;
    const struct matrix_part part[] = {{w, DTYPE_F32, n / parts},
                                       {w + (size_t)(n / parts) * (size_t)k, DTYPE_F32, n / parts}};
    float *scale = alloc((size_t)n * sizeof *scale);
    void *packed = alloc(bytes);
    matrix_pack_cuda(
        packed, scale,
        &(struct matrix_source){
            .parts = part, .n_parts = parts, .k = k, .flags = flags, .form = form, .head_dim = head_dim});
    struct matrix m = {.n = n,
                       .k = k,
                       .form = form,
                       .data = to_device(packed, bytes),
                       .bytes = bytes,
                       .flags = flags,
                       .head_dim = head_dim};
    if (form == MATRIX_FP8)
        m.scale = to_device(scale, (size_t)n * sizeof *scale);
    free(scale), free(packed);
    return m;
}

static inline void matrix_free(struct matrix *m)
{
    cudaFree(m->data);
    cudaFree(m->scale);
}
#endif
