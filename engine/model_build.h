/* model_build: what the files of engine/model share while a model comes into being, and a draft head after it. Private to model*.c and head.c. */
#ifndef ENGINE_MODEL_BUILD_H
#define ENGINE_MODEL_BUILD_H
#include "engine/model.h"
#include "engine/weights.h"

enum { BUILD_PARTS_MAX = 3 };

struct build {
    struct model *m;
    struct weights from;
    float *router;   /* owned [experts]: norms of a random router's rows; NULL: no layer has experts */
    float *vector;   /* owned [hidden or more] staging for norms and vectors */
    int kv_scales;   /* of the cache, found in the checkpoint and not used */
    float kv_scale;  /* the largest */
};

/* One matrix of the model: parts of the file, stacked. */
struct build_matrix {
    struct weight_want want[BUILD_PARTS_MAX];
    int n;
    enum matrix_flags flags;
    int exact; /* stays in BF16 whatever the options say: embedding, head, router */
    const struct weight_fused *fused; /* NULL, or [n]: where experts lie in one tensor */
};

int  build_matrix(struct build *b, struct matrix *w, const struct build_matrix *from);
/* Values to memory of the backend. */
int  build_floats(struct backend *be, const float *values, int n, float **out);
int  build_vector(struct build *b, const char *name, int n, float **out); /* name without ".weight"; n: at most that of the staging */
int  build_norm(struct build *b, const char *name, float **out); /* [hidden] */
/* Norms [experts] that a random router's rows need for the shares of model_opts.expert_skew. ERR_CONFIG: no norms give them. */
int  build_router_norms(int experts, double skew, float *norm);
int  build_layer(struct build *b, int i);

/* The forms that a model's matrices will have, by kind of layer. */
struct build_forms {
    enum matrix_form attention, dense, shared, experts;
};
struct build_forms build_forms(const struct build *b);
const char *build_forms_name(const struct model_config *c, const struct build_forms *forms); /* "FP8", "BF16", "BF16 and FP8" */
/* Before the first weight is read. ERR_MEMORY. */
int  build_check_room(const struct build *b, const struct build_forms *forms);
#endif
