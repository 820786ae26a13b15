/* weights: a checkpoint's tensors are lent as they lie in the file; random ones are made in BF16, four a
 * Philox call, each the sum of four uniform bytes (close enough to a normal for shapes and timings, and 50
 * times cheaper). */
#include "engine/weights.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include <math.h>
#include <stdlib.h>

static enum dtype dtype_of(const struct tensor *t)
{
    if (strcmp(t->dtype, "F32") == 0)
        return DTYPE_F32;
    return strcmp(t->dtype, "F16") == 0 ? DTYPE_F16 : DTYPE_BF16;
}

/* Sum of four bytes, mean 510 and variance 4 * (2^16 - 1) / 12, as N(0, scale). */
static float bytes_to_normal(uint32_t bits, float scale)
{
    uint32_t sum = (bits & 0xff) + (bits >> 8 & 0xff) + (bits >> 16 & 0xff) + (bits >> 24);
    return ((float)sum - 510.0f) * (scale / 147.8005f);
}

/* Values are a function of (seed, tensor, index): the same for any number of threads. out has room for n
 * rounded up to four, so that the loop has no edge. */
static void fill_normal(const struct weights *from, uint32_t tensor, bf16 *out, size_t n, float scale)
{
    const uint64_t seed = from->seed;
    const int64_t groups = (int64_t)((n + 3) / 4);
#pragma omp parallel for num_threads(from->threads) schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        struct philox4 r = philox(seed, tensor, (uint32_t)(g >> 32), PHILOX_SYNTHETIC, (uint32_t)g);
        out[4 * g] = bf16_from_f32(bytes_to_normal(r.v[0], scale));
        out[4 * g + 1] = bf16_from_f32(bytes_to_normal(r.v[1], scale));
        out[4 * g + 2] = bf16_from_f32(bytes_to_normal(r.v[2], scale));
        out[4 * g + 3] = bf16_from_f32(bytes_to_normal(r.v[3], scale));
    }
}

static int take_random(struct weights *from, const char *name, int n, int k, struct weight *out)
{
    size_t count = (size_t)n * (size_t)k;
    out->random = malloc((count + 3) * sizeof *out->random);
    if (!out->random)
        FAIL(ERR_MEMORY, "tensor '%s': out of memory for [%d, %d] random numbers", name, n, k);
    fill_normal(from, from->next++, out->random, count, 1.0f / sqrtf((float)k));
    out->part = (struct matrix_part){.data = out->random, .dtype = DTYPE_BF16, .n = n};
    return 0;
}

int weights_matrix(struct weights *from, const char *name, int n, int k, struct weight *out)
{
    *out = (struct weight){0};
    if (!from->ckpt)
        return take_random(from, name, n, k, out);
    TRY(checkpoint_take(from->ckpt, name, (size_t)n, (size_t)k, &out->tensor));
    out->part = (struct matrix_part){.data = out->tensor->data, .dtype = dtype_of(out->tensor), .n = n};
    return 0;
}

/* Element i of a tensor in the file, where nothing is aligned. */
static float element(const struct tensor *t, size_t i)
{
    const enum dtype type = dtype_of(t);
    const char *at = (const char *)t->data + i * dtype_size(type);
    uint16_t half;
    float whole;
    if (type == DTYPE_F32) {
        memcpy(&whole, at, sizeof whole);
        return whole;
    }
    memcpy(&half, at, sizeof half);
    return type == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

int weights_vector(struct weights *from, const char *name, int n, float *out)
{
    const struct tensor *t = NULL;
    if (!from->ckpt) {
        const uint32_t tensor = from->next++;
        for (int i = 0; i < n; i++) {
            struct philox4 r = philox(from->seed, tensor, 0, PHILOX_SYNTHETIC, (uint32_t)i);
            out[i] = 1.0f + bytes_to_normal(r.v[0], 0.1f);
        }
        return 0;
    }
    TRY(checkpoint_take(from->ckpt, name, (size_t)n, 0, &t));
    for (int i = 0; i < n; i++)
        out[i] = element(t, (size_t)i);
    checkpoint_release(from->ckpt, t);
    return 0;
}

void weights_drop(const struct weights *from, struct weight *w)
{
    if (w->tensor)
        checkpoint_release(from->ckpt, w->tensor);
    free(w->random);
    *w = (struct weight){0};
}
