/* checkpoint: the weights of a Hugging Face model directory, one file or sharded with an index. */
#ifndef ENGINE_CHECKPOINT_H
#define ENGINE_CHECKPOINT_H
#include "engine/safetensors.h"
#include <stdint.h>

struct checkpoint {
    char *dir;                  /* owned */
    struct safetensors *files;  /* owned [n_files] */
    int n_files;
    unsigned char *seen;        /* owned: which tensors were taken; see checkpoint_unused */
};

/* model.safetensors, or model.safetensors.index.json and its shards. ERR_IO, ERR_FORMAT: a shard missing, a tensor in
 * the index but not in its shard, or in two shards. A directory with pytorch_model.bin only gets told how to convert. */
int  checkpoint_open(struct checkpoint *c, const char *dir);
void checkpoint_close(struct checkpoint *c); /* a zeroed struct is fine */
/* What a caller can use. */
enum checkpoint_dtypes {
    CHECKPOINT_FLOATS = 1, /* BF16, F16, F32 */
    CHECKPOINT_FP8 = 2,    /* F8_E4M3 */
    CHECKPOINT_I64 = 4,
    CHECKPOINT_BOOL = 8
};
struct checkpoint_want {
    size_t shape[3];
    int n_dims;
    unsigned dtypes; /* enum checkpoint_dtypes or'ed */
};
/* The tensor with exactly this shape and one of these dtypes; marks it as taken. ERR_FORMAT naming tensor, expected and found. */
int  checkpoint_take_as(struct checkpoint *c, const char *name, const struct checkpoint_want *want, const struct tensor **out);
/* [rows] when cols = 0, else [rows, cols], of floats. */
int  checkpoint_take(struct checkpoint *c, const char *name, size_t rows, size_t cols, const struct tensor **out);
int  checkpoint_has(const struct checkpoint *c, const char *name);
const struct tensor *checkpoint_peek(const struct checkpoint *c, const char *name); /* without taking it; NULL: not there */
void checkpoint_release(const struct checkpoint *c, const void *at, size_t bytes); /* as safetensors_release */
/* ERR_FORMAT when a tensor was never taken, except "*rotary_emb.inv_freq" and what the flags allow. */
enum checkpoint_spare {
    CHECKPOINT_TIED = 1,  /* "lm_head.weight", of a model whose head is the embedding */
    CHECKPOINT_VISION = 2 /* "vision_model.*" and "multi_modal_projector.*", beside a text model */
};
int  checkpoint_unused(const struct checkpoint *c, unsigned spare);
/* 64-bit fingerprint of what the weights are: names, dtypes, shapes and a fixed sample of bytes of every tensor. */
uint64_t checkpoint_fingerprint(const struct checkpoint *c);
#endif
