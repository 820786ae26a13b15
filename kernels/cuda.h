/* cuda: the CUDA launcher of every operation, for C files that know no CUDA. A launcher checks nothing that its header demands of the
 * caller, launches on `stream` (a cudaStream_t) and returns a cudaError_t, 0 when the launch was accepted. All memory that arguments
 * point to is on the device, struct rows' arrays included; the structs themselves are on the host and are copied by the launch. rows.n is the
 * host's number of rows and sets the grid.
 *
 * Bits: every launcher keeps the rule that a row's bits depend on the row and its ancestors alone.
 * Forms: see kernels/types.h; acts are kernels/act.h, matrices as matrix_pack_cuda leaves them, the cache is bf16, k and v both
 * [slots][kv_heads][cap][head_dim]. `threads` and `scratch` of an argument are not used unless its launcher says so. */
#ifndef KERNELS_CUDA_H
#define KERNELS_CUDA_H
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/logits.h"
#include "kernels/quantise.h"
#include "kernels/read.h"
#include "kernels/rmsnorm.h"

/* W in the order of the A fragments of mma.m16n8k16 (weight shuffling), zero padded; a lane's 16-byte load is
 *   BF16  [ceil(n/16)][ceil(k/16)][32 lanes][8]: its whole fragment of a step of 16 inputs
 *   FP8   [ceil(n/16)][ceil(k/32)][32 lanes][16]: those of two steps, eight numbers each, in the same order
 * Which outputs stand in tile t of 16: MATRIX_INTERLEAVE: 8 t + 0..7 of G, then the same of U. MATRIX_ROTARY: of its head (head_dim / 16
 * tiles), component j = t % (head_dim / 16) * 8 + 0..7, then j + head_dim / 2. */
size_t matrix_cuda_bytes(int n, int k, enum matrix_form form);
int matrix_cuda_output(const struct matrix_source *from, int n, int tile, int row); /* the output there, n or more: none */
/* Host bytes to host bytes in that order, and scale [n] for FP8 (see struct matrix): how the layout is tested; what the backend runs packs on
 * the device. */
void matrix_pack_cuda(void *to, float *scale, const struct matrix_source *from);

KERN_API int embed_cuda(const struct embed *a, void *stream);
KERN_API int rmsnorm_cuda(const struct rmsnorm *a, void *stream);
KERN_API int gemm_cuda(const struct gemm *a, void *stream);
KERN_API int swiglu_cuda(const struct gemm *a, void *stream);
KERN_API int residual_cuda(const struct residual *a, void *stream); /* none of these in bulk: see kernels/bulk.h */
KERN_API int qkv_cuda(const struct qkv *a, void *stream);
KERN_API int quantise_cuda(const struct quantise *a, void *stream);
KERN_API int rope_temperature_cuda(const struct temperature *a, void *stream);
KERN_API int rope_table_cuda(const struct rows *rows, const float *inv_freq, int head_dim, float *cos_sin, void *stream);
KERN_API int rope_cuda(const struct rope *a, void *stream);
KERN_API int attention_cuda(const struct attention *a, void *stream); /* scratch f32 [attention_cuda_scratch(...)] */
KERN_API int kv_move_cuda(const struct kv_move *a, void *stream);    /* src is host memory, copied by the launch: n <= 64 */
KERN_API int logits_cuda(const struct logits *a, void *stream);
/* Floats for max_rows rows; all launches of one pass share them. */
KERN_API size_t attention_cuda_scratch(int max_rows, int heads, int head_dim, int cap);
/* Reads bytes once; out gets a checksum on the device. The measured read ceiling. */
KERN_API int read_cuda(const void *data, size_t bytes, unsigned long long *out, void *stream);
#endif
