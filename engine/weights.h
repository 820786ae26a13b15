/* weights: where the numbers of a model come from, one matrix at a time: a checkpoint or a seed. Used by model*.c. */
#ifndef ENGINE_WEIGHTS_H
#define ENGINE_WEIGHTS_H
#include "engine/checkpoint.h"
#include "engine/readahead.h"
#include "kernels/gemm.h"
#include "kernels/synthetic.h"

enum { WEIGHT_NAME_MAX = 128, WEIGHTS_SPARE = 3 };

struct weights {
    struct checkpoint *ckpt; /* borrowed; NULL: random */
    const char *prefix;      /* of every name: "language_model." in a checkpoint that has more than text, or "" */
    uint64_t seed;
    uint32_t next;           /* random: number of the next tensor */
    int threads;             /* of the host, for copies */
    int counts;              /* nobody looks at the numbers: none are copied */
    struct readahead *ahead; /* borrowed, or NULL: told of each matrix; a list of them first, where nobody looks at the numbers */
    int transposes;          /* the packer's: transposed numbers are lent as they lie */
    void *spare[WEIGHTS_SPARE]; /* owned: buffers of matrices dropped, for those to come */
    size_t spare_bytes[WEIGHTS_SPARE];
};

/* Some of the rows or columns: `stored` of the file at most, from `first` on, then zeros up to n; n 0: all. */
struct weight_range {
    int first, n, stored;
};
/* A matrix [n, k] of the file, and what becomes of it: rows in another order, then zeros appended, then a share taken. */
struct weight_want {
    char name[WEIGHT_NAME_MAX]; /* without prefix and ".weight" */
    int n, k;
    int n_pad, k_pad; /* so many rows and columns of zeros */
    int pairs;        /* a head size: rows 2j and 2j + 1 of each head become j and j + pairs / 2; 0: as they are */
    struct weight_range rows, cols; /* rows: whole heads where they are of pairs */
    float spread;     /* random: standard deviation; 0: 1/sqrt(k) */
    const float *norms; /* random: [n], what each row is scaled to; NULL: as drawn */
    int rounded;      /* FP8 numbers with scales will do, too */
    int scaled_here;  /* other numbers will be rounded to FP8: what lies beside the columns taken must be readable, too */
};

/* Where the experts of a layer lie in one tensor [count, k, n], each transposed: outputs [first, first + want.n) of expert `index`, of which want.rows are some. */
struct weight_fused {
    char name[WEIGHT_NAME_MAX]; /* without prefix */
    int count, index, n, first;
};

/* One matrix, valid until weights_drop and while it stays where it is: part.data may point into it. */
struct weight {
    struct matrix_part part;
    struct matrix_view view;     /* where its numbers lie in part.data */
    const struct tensor *tensor; /* borrowed from the checkpoint, or NULL */
    struct read_range used;      /* what of it is read */
    struct synthetic random;     /* what part.data is then */
    struct scaled rounded;       /* what part.data is of FP8 */
    float *scale;                /* owned: of rounded */
    void *copy;                  /* owned: numbers that could not stay as they lie in the file */
    size_t copy_bytes;
    float input_scale;           /* of FP8 whose inputs were calibrated, or 0 */
};

/* ckpt NULL: random weights of this seed. */
void weights_init(struct weights *from, struct checkpoint *ckpt, uint64_t seed, int threads);
void weights_deinit(struct weights *from); /* a zeroed struct is fine */
int  weights_cols(const struct weight_want *want); /* of the share */
int  weights_has(const struct weights *from, const char *name);
/* Random: N(0, 1/sqrt(k)), made where it is packed. From a file its numbers as stored, floats or FP8; a scale "NAME.weight_scale" of
 * one number ([] or [1]) or of one a row ([n] or [n, 1]) comes with FP8, and may come with an "NAME.input_scale" of one.
 * Errors: those of checkpoint_take_as; ERR_FORMAT for scales that are missing, negative or not finite; ERR_MEMORY. */
int  weights_matrix(struct weights *from, const struct weight_want *want, struct weight *out);
/* An expert's, out of the fused tensor where there is one (scales "NAME_weight_scale", "NAME_input_scale", one number for all experts),
 * else a tensor of its own. */
int  weights_expert(struct weights *from, const struct weight_want *want, const struct weight_fused *fused, struct weight *out);
/* A vector [n] in f32, for the norms; random: 1 + N(0, 0.1). */
int  weights_vector(struct weights *from, const char *name, int n, float *out);
/* One number; ERR_FORMAT when it is not there, negative or not finite. */
int  weights_scalar(struct weights *from, const char *name, float *out);
/* Gives its pages of the file back; a zeroed struct is fine. */
void weights_drop(struct weights *from, struct weight *w);
#endif
