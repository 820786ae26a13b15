/* types: the few words every kernel shares. */
#ifndef KERNELS_TYPES_H
#define KERNELS_TYPES_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* An activation row that a matrix will multiply ("act") and the cells of the key/value cache are in the form of the backend
 * that computes: arguments hold them as void pointers. CPU: f32, row-major. CUDA: bf16, acts in the order of kernels/act.h. */

typedef uint16_t bf16; /* the upper half of an IEEE binary32 */

enum dtype {
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F32,
    DTYPE_SYNTHETIC, /* a formula: kernels/synthetic.h */
    DTYPE_FP8        /* of a matrix_part: numbers and their scales, struct scaled */
};

/* How weights, activations and cache cells are kept. FP8 is E4M3 (1 sign, 4 exponent, 3 mantissa bits, largest 448; Micikevicius et al.,
 * arXiv 2209.05433); conversions: kernels/fp8.h. On the CPU an FP8 number is kept in a wider type that holds it exactly. */
enum matrix_form { MATRIX_BF16, MATRIX_FP8 };
enum act_form { ACT_BF16, ACT_F16 };  /* CUDA: acts that FP8 weights multiply are f16, all others bf16; the CPU has f32 alone */
enum kv_form { KV_WIDE, KV_FP8 };     /* wide: f32 on the CPU, bf16 on CUDA */

/* Bulk: the rows of a long prefill pass, a chain of one slot whose cells are their positions. CUDA then keeps acts as bf16, row-major
 * [rows, k], with every factor (1 / rms, scales) already in them, and computes for throughput; the bits differ from those of a
 * verification pass. Operations with a field `bulk` are told; the CPU does not care. */
enum { BULK_ROWS = 64 }; /* a bulk pass has more */

/* A fast CPU kernel is one source compiled once per instruction set: inside *_cpu.c a function
 * `KERN_NAME(gemm)` becomes gemm_portable, gemm_avx2 or gemm_avx512. */
#define KERN_JOIN2(a, b) a##_##b
#define KERN_JOIN(a, b)  KERN_JOIN2(a, b)
#define KERN_NAME(f)     KERN_JOIN(f, KERN_ISA)

#ifdef __CUDACC__
#define KERN_API extern "C"
#define KERN_FN  __host__ __device__ static inline
#else
#define KERN_API
#define KERN_FN static inline
#endif

KERN_FN float bf16_to_f32(bf16 h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest, ties to even; a NaN stays a NaN. */
KERN_FN bf16 bf16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (bf16)(u >> 16 | 0x40u);
    return (bf16)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* IEEE binary16, subnormals and infinities included. */
KERN_FN float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 0x1fu, man = h & 0x3ffu, u;
    float f;
    if (exp == 0) {
        f = (float)man * 0x1p-24f;
        memcpy(&u, &f, sizeof u);
        u |= sign;
    } else {
        u = sign | (exp == 31 ? 0x7f800000u : (exp + 112) << 23) | man << 13;
    }
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline size_t dtype_size(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : t == DTYPE_FP8 ? 1 : 2;
}
#endif
