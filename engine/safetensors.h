/* safetensors: one memory-mapped file, every header field checked before anything is used. Format: model-independent,
 * u64 little-endian header length, JSON, data (https://github.com/huggingface/safetensors). */
#ifndef ENGINE_SAFETENSORS_H
#define ENGINE_SAFETENSORS_H
#include <stddef.h>

enum { TENSOR_MAX_DIMS = 8 };

/* One tensor as it stands in the file. data points into the map: little-endian, row-major, ANY alignment. */
struct tensor {
    char *name;        /* owned by the file */
    char dtype[12];    /* "BF16", "F16", "F32", "F8_E4M3", "I64", "BOOL", ... as the file spells it */
    int n_dims;
    size_t shape[TENSOR_MAX_DIMS];
    const void *data;
    size_t bytes;
};

struct safetensors {
    char *path;             /* owned */
    void *map;              /* owned memory map of the whole file */
    size_t map_bytes;
    struct tensor *tensors; /* owned [n], sorted by name */
    int n;
};

/* ERR_IO; ERR_FORMAT for a header that is truncated, oversized, not JSON, an unknown dtype, a size that is not shape x
 * element, ranges that overlap, leave holes or pass the end: the tensor, what was expected, what was found. */
int  safetensors_open(struct safetensors *st, const char *path);
/* From bytes in memory (borrowed), for fuzzing; `what` stands for the path in messages. */
int  safetensors_parse(struct safetensors *st, const void *bytes, size_t n, const char *what);
void safetensors_close(struct safetensors *st); /* a zeroed struct is fine */
const struct tensor *safetensors_find(const struct safetensors *st, const char *name); /* NULL: not there */
/* Give the pages of some of a tensor's data back to the system once it was copied elsewhere; of another file's: nothing. */
void safetensors_release(const struct safetensors *st, const void *at, size_t bytes);
#endif
