/* gemm_lt: a row-major matrix is a column-major one transposed, so y = x W^T is, in the library's columns, Y
 * [n, rows] = W^T X with W [k, n] and X [k, rows] as they lie: its "TN" case, the one that its fastest
 * kernels serve. */
#include "kernels/gemm_lt.h"
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { ALIGNMENT = 16 };

static const char *const places[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
                                     "/usr/local/cuda-13/lib64/libcublasLt.so.13",
                                     "/usr/local/cuda-13.0/lib64/libcublasLt.so.13"};

/* What is called of it. */
struct library {
    __typeof__(&cublasLtCreate) create;
    __typeof__(&cublasLtDestroy) destroy;
    __typeof__(&cublasLtGetVersion) version;
    __typeof__(&cublasLtGetStatusString) status;
    __typeof__(&cublasLtMatmul) multiply;
    __typeof__(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    __typeof__(&cublasLtMatmulDescCreate) desc_create;
    __typeof__(&cublasLtMatmulDescDestroy) desc_destroy;
    __typeof__(&cublasLtMatmulDescSetAttribute) desc_set;
    __typeof__(&cublasLtMatrixLayoutCreate) layout_create;
    __typeof__(&cublasLtMatrixLayoutDestroy) layout_destroy;
    __typeof__(&cublasLtMatmulPreferenceCreate) preference_create;
    __typeof__(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    __typeof__(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

/* What a plan is for. */
struct shape {
    int n, k, rows;
    enum gemm_lt_type in, out;
};

struct plan {
    struct shape shape;
    cublasLtMatmulDesc_t desc; /* owned, like the layouts */
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo[GEMM_LT_CHOICES];
    int n_algos; /* 0: an empty place */
};

struct gemm_lt {
    struct library lib;
    void *so;                /* owned; its code stays loaded, CUDA libraries do not like to leave */
    cublasLtHandle_t handle; /* owned */
    struct plan plans[GEMM_LT_PLANS];
    int next; /* place of the next new plan */
};

static const char *type_name(enum gemm_lt_type t)
{
    static const char *const name[] = {"bf16", "fp8", "f32"};
    return name[t];
}

static cudaDataType_t type_of(enum gemm_lt_type t)
{
    static const cudaDataType_t type[] = {CUDA_R_16BF, CUDA_R_8F_E4M3, CUDA_R_32F};
    return type[t];
}

static int refused(const struct gemm_lt *lt, const struct shape *s, const char *what, cublasStatus_t status,
                   char why[GEMM_LT_WHY])
{
    snprintf(why, GEMM_LT_WHY,
             "cuBLASLt %zu: %s for y %s [%d, %d] = x %s [%d, %d] W [%d, %d] was refused: %s; a smaller "
             "workload or another version of the library may do it",
             lt->lib.version(), what, type_name(s->out), s->rows, s->n, type_name(s->in), s->rows, s->k, s->n,
             s->k, lt->lib.status(status));
    return 1;
}

/* The first place that has it; dlerror of the first says more than that of the last. */
static int load_library(struct gemm_lt *lt, char why[GEMM_LT_WHY])
{
    char first[GEMM_LT_WHY / 2] = "";
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        lt->so = dlopen(places[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (lt->so)
            return 0;
        const char *error = dlerror();
        if (i == 0)
            snprintf(first, sizeof first, "%s", error ? error : "no reason given");
    }
    snprintf(why, GEMM_LT_WHY,
             "prefilling more than 64 tokens at once needs cuBLASLt 13 of the CUDA toolkit (package "
             "libcublas-13-0, or "
             "pip install nvidia-cublas and its folder in LD_LIBRARY_PATH): %s",
             first);
    return 1;
}

/* dlsym returns functions as objects: POSIX makes the two the same size, C does not. */
static int find(const struct gemm_lt *lt, const char *name, void *to, char why[GEMM_LT_WHY])
{
    void *symbol = dlsym(lt->so, name);
    if (!symbol) {
        snprintf(
            why, GEMM_LT_WHY,
            "cuBLASLt: the library found as %s has no function %s: expected version 13 of a CUDA toolkit",
            places[0], name);
        return 1;
    }
    memcpy(to, &symbol, sizeof symbol);
    return 0;
}

static int find_all(struct gemm_lt *lt, char why[GEMM_LT_WHY])
{
    struct library *l = &lt->lib;
    const struct {
        const char *name;
        void *to;
    } all[] = {{"cublasLtCreate", &l->create},
               {"cublasLtDestroy", &l->destroy},
               {"cublasLtGetVersion", &l->version},
               {"cublasLtGetStatusString", &l->status},
               {"cublasLtMatmul", &l->multiply},
               {"cublasLtMatmulAlgoGetHeuristic", &l->heuristic},
               {"cublasLtMatmulDescCreate", &l->desc_create},
               {"cublasLtMatmulDescDestroy", &l->desc_destroy},
               {"cublasLtMatmulDescSetAttribute", &l->desc_set},
               {"cublasLtMatrixLayoutCreate", &l->layout_create},
               {"cublasLtMatrixLayoutDestroy", &l->layout_destroy},
               {"cublasLtMatmulPreferenceCreate", &l->preference_create},
               {"cublasLtMatmulPreferenceDestroy", &l->preference_destroy},
               {"cublasLtMatmulPreferenceSetAttribute", &l->preference_set}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (find(lt, all[i].name, all[i].to, why))
            return 1;
    return 0;
}

int gemm_lt_open(struct gemm_lt **out, char why[GEMM_LT_WHY])
{
    struct gemm_lt *lt = calloc(1, sizeof *lt);
    if (!lt) {
        snprintf(why, GEMM_LT_WHY, "cuBLASLt: out of memory for its plans");
        return 1;
    }
    int rc = load_library(lt, why) || find_all(lt, why);
    if (!rc) {
        const cublasStatus_t status = lt->lib.create(&lt->handle);
        if (status != CUBLAS_STATUS_SUCCESS) {
            snprintf(
                why, GEMM_LT_WHY,
                "cuBLASLt %zu does not start: %s; it needs a GPU with free memory and a driver for CUDA 13",
                lt->lib.version(), lt->lib.status(status));
            lt->handle = NULL;
            rc = 1;
        }
    }
    if (rc)
        gemm_lt_close(lt);
    else
        *out = lt;
    return rc;
}

static void drop_plan(const struct library *l, struct plan *p)
{
    if (p->w)
        l->layout_destroy(p->w);
    if (p->x)
        l->layout_destroy(p->x);
    if (p->y)
        l->layout_destroy(p->y);
    if (p->desc)
        l->desc_destroy(p->desc);
    *p = (struct plan){.n_algos = 0};
}

void gemm_lt_close(struct gemm_lt *lt)
{
    if (!lt)
        return;
    for (int i = 0; lt->handle && i < GEMM_LT_PLANS; i++)
        drop_plan(&lt->lib, &lt->plans[i]);
    if (lt->handle)
        lt->lib.destroy(lt->handle);
    if (lt->so)
        dlclose(lt->so);
    free(lt);
}

size_t gemm_lt_version(const struct gemm_lt *lt)
{
    return lt->lib.version();
}

static cublasStatus_t describe(const struct library *l, struct plan *p)
{
    const struct shape *s = &p->shape;
    const cudaDataType_t in = type_of(s->in);
    const cublasOperation_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const uint64_t n = (uint64_t)s->n, k = (uint64_t)s->k, rows = (uint64_t)s->rows;
    cublasStatus_t rc = l->desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!rc)
        rc = l->desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (!rc)
        rc = l->desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain);
    if (!rc)
        rc = l->layout_create(&p->w, in, k, n, s->k);
    if (!rc)
        rc = l->layout_create(&p->x, in, k, rows, s->k);
    if (!rc)
        rc = l->layout_create(&p->y, type_of(s->out), n, rows, s->n);
    return rc;
}

/* What a proposal may use: the workspace, 16-byte aligned pointers, and of the ways to split k those that add
 * in f32. */
static cublasStatus_t prefer(const struct library *l, cublasLtMatmulPreference_t preference)
{
    static const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint64_t workspace = GEMM_LT_WORKSPACE;
    const uint32_t alignment = ALIGNMENT, sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasStatus_t rc =
        l->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (!rc)
        rc = l->preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums);
    for (int i = 0; !rc && i < 4; i++)
        rc = l->preference_set(preference, aligned[i], &alignment, sizeof alignment);
    return rc;
}

static cublasStatus_t propose(struct gemm_lt *lt, struct plan *p)
{
    const struct library *l = &lt->lib;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found[GEMM_LT_CHOICES];
    int n = 0;
    cublasStatus_t rc = l->preference_create(&preference);
    if (rc)
        return rc;
    rc = prefer(l, preference);
    if (!rc)
        rc =
            l->heuristic(lt->handle, p->desc, p->w, p->x, p->y, p->y, preference, GEMM_LT_CHOICES, found, &n);
    l->preference_destroy(preference);
    for (int i = 0; !rc && i < n; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS)
            p->algo[p->n_algos++] = found[i].algo;
    return !rc && p->n_algos == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : rc;
}

/* The plan of a product's shape, made when there is none. */
static struct plan *plan_for(struct gemm_lt *lt, const struct gemm_lt_product *a, char why[GEMM_LT_WHY])
{
    const struct shape s = {.n = a->n, .k = a->k, .rows = a->rows, .in = a->in, .out = a->out};
    for (int i = 0; i < GEMM_LT_PLANS; i++) {
        const struct shape *p = &lt->plans[i].shape;
        if (lt->plans[i].n_algos && p->n == s.n && p->k == s.k && p->rows == s.rows && p->in == s.in &&
            p->out == s.out)
            return &lt->plans[i];
    }
    struct plan *p = &lt->plans[lt->next];
    drop_plan(&lt->lib, p);
    p->shape = s;
    cublasStatus_t rc = describe(&lt->lib, p);
    if (!rc)
        rc = propose(lt, p);
    if (!rc) {
        lt->next = (lt->next + 1) % GEMM_LT_PLANS;
        return p;
    }
    refused(lt, &s, "a way to compute", rc, why);
    drop_plan(&lt->lib, p);
    return NULL;
}

int gemm_lt_choices(struct gemm_lt *lt, const struct gemm_lt_product *a, int *out, char why[GEMM_LT_WHY])
{
    const struct plan *p = plan_for(lt, a, why);
    if (!p)
        return 1;
    *out = p->n_algos;
    return 0;
}

static cublasStatus_t set_scales(const struct library *l, const struct plan *p,
                                 const struct gemm_lt_product *a)
{
    cublasStatus_t rc =
        l->desc_set(p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &a->w_scale, sizeof a->w_scale);
    return rc ? rc
              : l->desc_set(p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &a->x_scale, sizeof a->x_scale);
}

int gemm_lt_run(struct gemm_lt *lt, const struct gemm_lt_product *a, void *stream, char why[GEMM_LT_WHY])
{
    const float one = 1, beta = a->accumulate ? 1 : 0;
    const struct plan *p = plan_for(lt, a, why);
    if (!p)
        return 1;
    if (a->choice < 0 || a->choice >= p->n_algos) {
        snprintf(why, GEMM_LT_WHY,
                 "cuBLASLt: expected a choice from 0 to %d for [%d, %d] of %d rows, found %d", p->n_algos - 1,
                 a->n, a->k, a->rows, a->choice);
        return 1;
    }
    cublasStatus_t rc = a->in == GEMM_LT_FP8 ? set_scales(&lt->lib, p, a) : CUBLAS_STATUS_SUCCESS;
    if (!rc)
        rc = lt->lib.multiply(lt->handle, p->desc, &one, a->w, p->w, a->x, p->x, &beta, a->y, p->y, a->y,
                              p->y, &p->algo[a->choice], a->workspace, GEMM_LT_WORKSPACE, stream);
    return rc ? refused(lt, &p->shape, "the product", rc, why) : 0;
}
