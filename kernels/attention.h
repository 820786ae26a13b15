/* attention: the key/value cache of one layer, rotary embedding with the cache write, and attention over a token tree.
 *
 * A sequence's cache has `cap` cells. Cells [0, committed) hold the text so far, cell = position. The rows under
 * verification take the cells after them, in row order; two siblings have the same position and different cells.
 * For row r the key of position p stands in cell p when p < base[r], else in cell path[path_off[r] + p - base[r]]
 * (its ancestors and itself). A chain or a prefill block needs no path: base = pos + 1. */
#ifndef KERNELS_ATTENTION_H
#define KERNELS_ATTENTION_H
#include "kernels/gemm.h"

enum { KV_BLOCK = 16 }; /* cap is a multiple of it */

/* One layer's cache, f32. k [slots][kv_heads][cap / 16][head_dim][16]: a lane is a position, so scores need no sum
 * across lanes. v [slots][kv_heads][cap][head_dim]. Owned by engine/kv. */
struct kv_layer {
    void *k, *v;
    int slots, kv_heads, head_dim, cap;
    enum kv_form form; /* FP8: E4M3 of the number itself, saturating; the CPU keeps it in f32 */
};

/* Where a cell's key begins in k (component d stands d * KV_BLOCK further) and its value in v (contiguous). */
static inline size_t kv_key_at(const struct kv_layer *kv, int slot, int head, int cell)
{
    size_t blocks = ((size_t)slot * (size_t)kv->kv_heads + (size_t)head) * (size_t)(kv->cap / KV_BLOCK);
    return (blocks + (size_t)(cell / KV_BLOCK)) * (size_t)kv->head_dim * KV_BLOCK + (size_t)(cell % KV_BLOCK);
}
static inline size_t kv_value_at(const struct kv_layer *kv, int slot, int head, int cell)
{
    size_t cells = ((size_t)slot * (size_t)kv->kv_heads + (size_t)head) * (size_t)kv->cap + (size_t)cell;
    return cells * (size_t)kv->head_dim;
}

/* The same places in the CPU's cache, which is f32. */
static inline float *kv_key(const struct kv_layer *kv, int slot, int head, int cell)
{
    return (float *)kv->k + kv_key_at(kv, slot, head, cell);
}

static inline float *kv_value(const struct kv_layer *kv, int slot, int head, int cell)
{
    return (float *)kv->v + kv_value_at(kv, slot, head, cell);
}

/* The rows of one pass; arrays in the backend's memory, borrowed. */
struct rows {
    int n;
    const int *token;    /* [n] */
    const int *slot;     /* [n] whose cache; -1: nobody's row, which touches no cache and whose results mean nothing */
    const int *pos;      /* [n] absolute position */
    const int *cell;     /* [n] where this row's key and value go */
    const int *base;     /* [n] positions below it are their own cell */
    const int *path_off; /* [n] */
    const int *path;     /* cells of positions base[r]..pos[r]; pos[r] - base[r] + 1 of them, none when base = pos + 1 */
};
/* The cell of position p as row r sees it, 0 <= p <= pos[r]. */
static inline int rows_cell(const struct rows *rows, int r, int p)
{
    return p < rows->base[r] ? p : rows->path[rows->path_off[r] + p - rows->base[r]];
}

/* rope: rotate q and k by position (half rotation: component j pairs with j + head_dim / 2; Su et al., arXiv 2104.09864,
 * in the layout of Hugging Face checkpoints), norm them where the model does, write k and v to their cells.
 *   x'[j] = x[j] cos(a_j) - x[j + h] sin(a_j);  x'[j + h] = x[j + h] cos(a_j) + x[j] sin(a_j);  a_j = pos * inv_freq[j], f32
 *   qk_norm: x'' = x' / sqrt(mean over the head's components of x'^2 + qk_norm);  temperature: q'' = q' * temperature[r]
 *   qk_gain: that norm comes first and is multiplied, x = x / sqrt(...) * gain, then the rotation (Qwen3)
 * shapes   qkv f32 [rows, (heads + 2 kv_heads) * head_dim]: q, k, v one after the other; q is rotated in place
 *          cos_sin f32 [rows, head_dim]: cosines then sines, from rope_table
 * needs    head_dim % 16 == 0 with qk_norm
 * math     f32, a row alone; the norm's squares in 16 partial sums by component modulo 16, added pairwise */
struct rope {
    const struct rows *rows;
    float *qkv;
    const float *cos_sin;
    struct kv_layer kv;
    int heads, threads;
    int rotate;               /* 0: q and k stay as they are (Llama 4's NoPE layers), cos_sin is not read */
    float qk_norm;            /* the eps of a norm of each head of q and k, without weights; 0: none */
    const float *qk_gain;     /* with qk_norm, CPU alone: f32 [2, head_dim], of queries, then of keys; NULL: a norm without, behind the rotation */
    const float *temperature; /* f32 [rows], from rope_temperature; NULL: none */
};
/* The product that makes q, k and v, then rope on it: product.y is rope.qkv, W is packed with MATRIX_ROTARY. On CUDA one kernel, unless in
 * bulk (see kernels/gemm.cu for many rows); k and v then reach their cells alone, not qkv. */
struct qkv {
    struct gemm product;
    struct rope rope;
};
void rope_ref(const struct rope *a);
void rope_table(const struct rows *rows, const float *inv_freq, int head_dim, float *cos_sin); /* once a pass */
/* out[r] = 1 + scale ln(1 + floor((pos + 1) / floor)), f32: how far Llama 4 spreads the queries of long texts apart. Once a pass. */
struct temperature {
    const struct rows *rows;
    float scale, floor;
    float *out; /* [rows] */
};
void rope_temperature(const struct temperature *a);

/* y[r, h, :] = sum_p softmax_p(scale * q[r, h] . k[p, g]) v[p, g], p = first..pos[r], g = h / (heads / kv_heads)
 *          first = 0, or with chunks the first position of the one that pos[r] lies in: pos[r] / chunk * chunk
 * shapes   qkv as above (q read, row stride (heads + 2 kv_heads) * head_dim); y f32 [rows, heads * head_dim]
 *          scratch f32 [threads][attention_scratch(...)]
 * needs    head_dim % 16 == 0; cells that a row does not see may hold anything, NaN included
 * math     f32; scores sum over head_dim ascending; the maximum is exact; exponentials are summed in 16 lanes by
 *          position modulo 16, lanes added pairwise; values are added by ascending position. Nothing depends on other
 *          rows, on cells or on what is committed. */
struct attention {
    const struct rows *rows;
    const float *qkv;
    struct kv_layer kv;
    void *y;
    float *scratch;
    int heads, threads;
    int reach;             /* every row's pos is below it: what a launch covers, never part of a result; at most cap */
    enum act_form y_form;
    int bulk;
    int chunk;             /* positions of a chunk; 0: a row sees all of its text */
    float scale;
};
/* The first position that a row at pos sees. */
KERN_FN int attention_first(int chunk, int pos)
{
    return chunk > 0 ? pos / chunk * chunk : 0;
}
size_t attention_scratch(int heads, int kv_heads, int head_dim, int cap); /* floats a thread */
void attention_ref(const struct attention *a); /* double; plain loops over positions */

/* kv_move: within one slot of one layer copy cells src[i] to dst + i, i = 0..n-1; src increasing, src[i] >= dst + i. */
struct kv_move {
    struct kv_layer kv;
    int slot, dst, n;
    const int *src;
};
void kv_move_ref(const struct kv_move *a); /* also the CPU's path: it copies */
#endif
