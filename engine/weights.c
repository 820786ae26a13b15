/* weights: a checkpoint's tensors are lent as they lie in the file; random ones are lent as a formula
 * (kernels/synthetic.h), so that no copy of them is ever made. */
#include "engine/weights.h"
#include "engine/err.h"
#include <math.h>

static enum dtype dtype_of(const struct tensor *t)
{
    if (strcmp(t->dtype, "F32") == 0)
        return DTYPE_F32;
    return strcmp(t->dtype, "F16") == 0 ? DTYPE_F16 : DTYPE_BF16;
}

int weights_matrix(struct weights *from, const char *name, int n, int k, struct weight *out)
{
    *out = (struct weight){0};
    if (!from->ckpt) {
        out->random = (struct synthetic){from->seed, from->next++, 1.0f / sqrtf((float)k)};
        out->part = (struct matrix_part){.data = &out->random, .dtype = DTYPE_SYNTHETIC, .n = n};
        return 0;
    }
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
            out[i] = 1.0f + synthetic_normal(r.v[0], 0.1f);
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
    *w = (struct weight){0};
}
