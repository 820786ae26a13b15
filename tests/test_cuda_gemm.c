/* gemm_cuda and swiglu_cuda: against the double reference, exactly on integers, and every row alone against
 * every batch. */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include <check.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ROWS = 130, MAX_SAMPLES = 640, UNTOUCHED = 0xff };
enum values { RANDOM, INTEGERS };

static const struct {
    int n, k;
} shapes[] = {{1, 1},      {16, 16},     {17, 3},     {97, 64},     {48, 33},     {100, 65},
              {33, 127},   {640, 192},   {8211, 48},  {960, 576},   {576, 576},   {576, 1536},
              {896, 5120}, {49152, 576}, {40, 20000}, {6144, 4096}, {4096, 14336}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const struct {
    int m, k;
} gated[] = {{16, 16}, {24, 33}, {8, 700}, {48, 64}, {1536, 576}, {4112, 80}, {14336, 4096}};
enum { N_GATED = sizeof gated / sizeof *gated };

static void cuda_ok(int error, const char *what)
{
    if (error)
        ck_abort_msg("%s: %s", what, cudaGetErrorString((cudaError_t)error));
}

static void *alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

static void *device_alloc(size_t bytes)
{
    void *p = NULL;
    cuda_ok(cudaMalloc(&p, bytes + 16), "allocating");
    return p;
}

static void upload(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "uploading");
}

static void download(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "running the kernel or downloading");
}

/* A value of place (row, i): cheap, since matrices are large; random ones are uniform in (-1, 1) before
 * rounding to bf16. */
static float value(uint32_t stream, int row, int i, enum values values)
{
    uint32_t h = ((uint32_t)row * 0x9E3779B9u + stream) ^ ((uint32_t)i * 0x85EBCA6Bu);
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    h ^= h >> 15;
    if (values == INTEGERS)
        return (float)((int)(h % 17) - 8);
    return bf16_to_f32(bf16_from_f32((float)(int32_t)h * 0x1p-31f));
}

/* One problem: weights on the device, acts of MAX_ROWS rows together and each alone, outputs, and the host's
 * copy of a sample. */
struct problem {
    int n, k, gated, outputs; /* outputs of a row: n, or n / 2 */
    enum values values;
    struct matrix w;       /* data on the device */
    bf16 *x, *alone;       /* device acts: all rows; [MAX_ROWS] acts of one row each */
    float *y;              /* device */
    size_t y_bytes;        /* of all rows */
    size_t alone_bytes;    /* of one row's own output */
    void *host;            /* y_bytes or MAX_ROWS * alone_bytes */
    float *expected, *out; /* [MAX_ROWS, outputs] */
};

static float weight(const struct problem *p, int j, int i)
{
    return value(1, j, i, p->values);
}

static float input(const struct problem *p, int r, int i)
{
    return value(2, r, i, p->values);
}

static float start(int i)
{
    return (float)(i % 251 - 125);
}

static void pack_weights(struct problem *p)
{
    bf16 *w = alloc((size_t)p->n * (size_t)p->k * sizeof *w),
         *packed = alloc(matrix_cuda_bytes(p->n, p->k, MATRIX_BF16));
#pragma omp parallel for
    for (int j = 0; j < p->n; j++)
        for (int i = 0; i < p->k; i++)
            w[(size_t)j * (size_t)p->k + (size_t)i] = bf16_from_f32(weight(p, j, i));
    int first = p->gated ? p->n / 2 : p->n;
    struct matrix_part parts[2] = {{w, DTYPE_BF16, first},
                                   {w + (size_t)first * (size_t)p->k, DTYPE_BF16, first}};
    matrix_pack_cuda(packed, NULL,
                     &(struct matrix_source){.parts = parts,
                                             .n_parts = p->gated ? 2 : 1,
                                             .k = p->k,
                                             .flags = p->gated ? MATRIX_INTERLEAVE : MATRIX_PLAIN});
    size_t bytes = matrix_cuda_bytes(p->n, p->k, MATRIX_BF16);
    p->w = (struct matrix){.n = p->n, .k = p->k, .data = device_alloc(bytes), .bytes = bytes};
    upload(p->w.data, packed, bytes);
    free(w);
    free(packed);
}

/* Rows past the last and everything undefined is NaN, so that a kernel that lets it touch a row is found. */
static void pack_inputs(struct problem *p)
{
    size_t tile = act_tile(p->k), all = tile * ((MAX_ROWS + ACT_ROWS - 1) / ACT_ROWS);
    int padded = (p->k + ACT_STEP - 1) / ACT_STEP * ACT_STEP;
    bf16 *x = alloc(all * sizeof *x), *alone = alloc(tile * MAX_ROWS * sizeof *alone);
    memset(x, 0xff, all * sizeof *x);
    memset(alone, 0xff, tile * MAX_ROWS * sizeof *alone);
    for (int r = 0; r < MAX_ROWS; r++)
        for (int i = 0; i < padded; i++) {
            bf16 v = i < p->k ? bf16_from_f32(input(p, r, i)) : 0;
            x[act_at(r, i, p->k)] = v;
            alone[tile * (size_t)r + act_at(0, i, p->k)] = v;
        }
    p->x = device_alloc(all * sizeof *x);
    p->alone = device_alloc(tile * MAX_ROWS * sizeof *alone);
    upload(p->x, x, all * sizeof *x);
    upload(p->alone, alone, tile * MAX_ROWS * sizeof *alone);
    free(x);
    free(alone);
}

static void problem_init(struct problem *p, int n, int k, int is_gated, enum values values)
{
    *p = (struct problem){
        .n = n, .k = k, .gated = is_gated, .outputs = is_gated ? n / 2 : n, .values = values};
    size_t outputs = (size_t)p->outputs;
    p->alone_bytes = is_gated ? act_tile(p->outputs) * sizeof(bf16) : outputs * sizeof(float);
    p->y_bytes = is_gated ? act_tile(p->outputs) * ((MAX_ROWS + ACT_ROWS - 1) / ACT_ROWS) * sizeof(bf16)
                          : MAX_ROWS * outputs * sizeof(float);
    p->y = device_alloc(MAX_ROWS * p->alone_bytes);
    p->host = alloc(MAX_ROWS * p->alone_bytes);
    p->expected = alloc(MAX_ROWS * outputs * sizeof(float));
    p->out = alloc(MAX_ROWS * outputs * sizeof(float));
    pack_weights(p);
    pack_inputs(p);
}

static void problem_deinit(struct problem *p)
{
    cudaFree(p->w.data);
    cudaFree(p->x);
    cudaFree(p->alone);
    cudaFree(p->y);
    free(p->host);
    free(p->expected);
    free(p->out);
}

/* Outputs before a launch: start() for gemm, NaN for acts. */
static void reset(const struct problem *p)
{
    if (p->gated) {
        cuda_ok(cudaMemset(p->y, UNTOUCHED, MAX_ROWS * p->alone_bytes), "clearing");
        return;
    }
    for (int r = 0; r < MAX_ROWS; r++)
        for (int j = 0; j < p->outputs; j++)
            ((float *)p->host)[(size_t)r * (size_t)p->outputs + (size_t)j] = start(r + j);
    upload(p->y, p->host, p->y_bytes);
}

static void launch(const struct problem *p, const void *x, void *y, int rows, int accumulate)
{
    struct gemm a = {.w = &p->w, .x = x, .y = y, .rows = rows, .accumulate = accumulate};
    cuda_ok(p->gated ? swiglu_cuda(&a, NULL) : gemm_cuda(&a, NULL), "launching");
}

static float act_get(const void *act, int r, int i, int k)
{
    bf16 v;
    memcpy(&v, (const char *)act + act_at(r, i, k) * sizeof v, sizeof v);
    return bf16_to_f32(v);
}

/* Every row alone, to p->expected. */
static void run_alone(const struct problem *p, int accumulate)
{
    reset(p);
    for (int r = 0; r < MAX_ROWS; r++)
        launch(p, p->alone + act_tile(p->k) * (size_t)r, (char *)p->y + p->alone_bytes * (size_t)r, 1,
               accumulate);
    download(p->host, p->y, MAX_ROWS * p->alone_bytes);
    for (int r = 0; r < MAX_ROWS; r++) {
        const char *row = (const char *)p->host + p->alone_bytes * (size_t)r;
        float *to = p->expected + (size_t)r * (size_t)p->outputs;
        if (!p->gated)
            memcpy(to, row, p->alone_bytes);
        for (int j = 0; p->gated && j < p->outputs; j++)
            to[j] = act_get(row, 0, j, p->outputs);
    }
}

/* Rows [0, rows) in one launch, to p->out; the rows after them must keep what they held. */
static void run_batch(const struct problem *p, int rows, int accumulate)
{
    reset(p);
    launch(p, p->x, p->y, rows, accumulate);
    download(p->host, p->y, p->y_bytes);
    int padded = (p->outputs + ACT_STEP - 1) / ACT_STEP * ACT_STEP;
    for (int r = 0; r < MAX_ROWS; r++) {
        float *to = p->out + (size_t)r * (size_t)p->outputs;
        for (int j = 0; j < p->outputs; j++) {
            to[j] = p->gated ? act_get(p->host, r, j, p->outputs)
                             : ((float *)p->host)[(size_t)r * (size_t)p->outputs + (size_t)j];
            if (r >= rows && (p->gated ? !isnan(to[j]) : to[j] != start(r + j)))
                ck_abort_msg("[%d, %d], %d rows: row %d output %d was written: %a", p->n, p->k, rows, r, j,
                             (double)to[j]);
        }
        for (int j = p->outputs; p->gated && r < rows && j < padded; j++)
            if (act_get(p->host, r, j, p->outputs) != 0)
                ck_abort_msg("[%d, %d], %d rows: row %d input %d past the last is %a, not 0", p->n, p->k,
                             rows, r, j, (double)act_get(p->host, r, j, p->outputs));
    }
}

static void expect_same_bits(const struct problem *p, int rows, int accumulate)
{
    int wrong = 0, first = -1, total = rows * p->outputs;
    for (int i = 0; i < total; i++)
        if (memcmp(&p->out[i], &p->expected[i], sizeof(float)) != 0 && wrong++ == 0)
            first = i;
    if (wrong)
        ck_abort_msg("%s [%d, %d]%s, %d rows: %d of %d outputs differ from the row alone, first row %d "
                     "output %d: %a, alone %a",
                     p->gated ? "swiglu" : "gemm", p->n, p->k, accumulate ? " +=" : "", rows, wrong, total,
                     first / p->outputs, first % p->outputs, (double)p->out[first],
                     (double)p->expected[first]);
}

static void check_rows(const struct problem *p, int accumulate)
{
    static const int few[] = {1, 2, 3, 8, 9, 16, 17, 24, 31, 33, 63, 64, 65, 72, 128, 129, MAX_ROWS};
    int small = (size_t)p->n * (size_t)p->k < 1000000;
    run_alone(p, accumulate);
    for (int i = 1; small && i <= MAX_ROWS; i++) {
        run_batch(p, i, accumulate);
        expect_same_bits(p, i, accumulate);
    }
    for (size_t i = 0; !small && i < sizeof few / sizeof *few; i++) {
        run_batch(p, few[i], accumulate);
        expect_same_bits(p, few[i], accumulate);
    }
}

/* Outputs that the reference computes: all of them, or some from everywhere and the last 16. */
static int samples_of(const struct problem *p)
{
    return p->outputs <= MAX_SAMPLES ? p->outputs : 64;
}

static int sample(const struct problem *p, int i)
{
    int n = samples_of(p);
    return n == p->outputs ? i : i < n - 16 ? (int)((int64_t)i * p->outputs / (n - 16)) : p->outputs - n + i;
}

/* The sampled outputs of some rows by the double reference, of the values or (magnitude) of their absolute
 * values: sums of |w x|. first: 0, or n / 2 for the second part of a gated matrix; combine: both parts
 * through swiglu_ref. y [count, padded] */
struct reference {
    int count, padded; /* rows; outputs padded to a multiple of 16 with zero weights */
    const int *rows;
};

static float *reference(const struct problem *p, const struct reference *ref, int first, int magnitude,
                        int combine)
{
    int n = ref->padded, k = p->k, parts = combine ? 2 : 1;
    float *w = alloc((size_t)(parts * n) * (size_t)k * sizeof *w),
          *x = alloc((size_t)ref->count * (size_t)k * sizeof *x),
          *y = alloc((size_t)ref->count * (size_t)n * sizeof *y);
    memset(w, 0, (size_t)(parts * n) * (size_t)k * sizeof *w);
    for (int part = 0; part < parts; part++)
        for (int j = 0; j < samples_of(p); j++)
            for (int i = 0; i < k; i++) {
                float v = weight(p, sample(p, j) + (part ? p->n / 2 : first), i);
                w[((size_t)part * (size_t)n + (size_t)j) * (size_t)k + (size_t)i] = magnitude ? fabsf(v) : v;
            }
    for (int r = 0; r < ref->count; r++)
        for (int i = 0; i < k; i++) {
            float v = input(p, ref->rows[r], i);
            x[(size_t)r * (size_t)k + (size_t)i] = magnitude ? fabsf(v) : v;
        }
    struct matrix m = {.n = parts * n, .k = k, .data = alloc(matrix_packed_bytes(parts * n, k))};
    struct matrix_part from[2] = {{w, DTYPE_F32, n}, {w + (size_t)n * (size_t)k, DTYPE_F32, n}};
    matrix_pack(&m, from, parts, combine ? MATRIX_INTERLEAVE : MATRIX_PLAIN, 1);
    struct gemm a = {.w = &m, .x = x, .y = y, .rows = ref->count, .threads = 1};
    if (combine)
        swiglu_ref(&a);
    else
        gemm_ref(&a);
    free(w);
    free(x);
    free(m.data);
    return y;
}

/* Of a sum: every addition on the way of a value (the steps of its slice, 8 slices, up to 4 blocks, the old
 * y) loses at most one unit in the last place, 2^-23, of a partial sum, and no partial sum exceeds the sum of
 * magnitudes. */
static double sum_bound(const struct problem *p, double magnitude)
{
    return (double)((p->k + 15) / 16 / 8 + 1 + 8 + 4 + 1) * 0x1p-23 * magnitude;
}

/* silu is 1.1-Lipschitz and |silu(g)| <= |g|; then a few roundings of f32 and one to bf16's 8 bits. */
static double swiglu_bound(const struct problem *p, double g, double u, double g_magnitude,
                           double u_magnitude)
{
    double dg = sum_bound(p, g_magnitude), du = sum_bound(p, u_magnitude), silu = fabs(g / (1 + exp(-g)));
    double value = silu * fabs(u), inner = 1.1 * dg * (fabs(u) + du) + silu * du + value * 0x1p-20;
    return inner + (value + inner) * 0x1p-8 + 0x1p-126;
}

static const int reference_rows[] = {0, 1, 7, 8, 30, 63, 64, 129};
enum { N_REFERENCE_ROWS = sizeof reference_rows / sizeof *reference_rows };

static struct reference reference_of(const struct problem *p)
{
    return (struct reference){N_REFERENCE_ROWS, (samples_of(p) + 15) / 16 * 16, reference_rows};
}

static void report(const struct problem *p, double worst, int row, int output, double got, double want,
                   double bound)
{
    printf("%s [%d, %d]: worst error is %.4f of its bound, row %d output %d: %.9g, reference %.9g\n",
           p->gated ? "swiglu" : "gemm", p->n, p->k, worst, row, output, got, want);
    fflush(stdout);
    if (!(worst <= 1))
        ck_abort_msg("%s [%d, %d]: row %d output %d is %.9g, reference %.9g, bound %.3g",
                     p->gated ? "swiglu" : "gemm", p->n, p->k, row, output, got, want, bound);
}

/* p->out of MAX_ROWS rows against the reference. */
static void check_bound(const struct problem *p)
{
    struct reference ref = reference_of(p);
    float *want = reference(p, &ref, 0, 0, p->gated), *size = reference(p, &ref, 0, 1, 0);
    float *g = p->gated ? reference(p, &ref, 0, 0, 0) : NULL,
          *u = p->gated ? reference(p, &ref, p->n / 2, 0, 0) : NULL,
          *u_size = p->gated ? reference(p, &ref, p->n / 2, 1, 0) : NULL;
    double worst = -1, worst_bound = 0;
    size_t worst_at = 0;
    int row = 0, output = 0;
    for (int r = 0; r < ref.count; r++)
        for (int j = 0; j < samples_of(p); j++) {
            size_t at = (size_t)r * (size_t)ref.padded + (size_t)j;
            double got = p->out[(size_t)ref.rows[r] * (size_t)p->outputs + (size_t)sample(p, j)];
            double bound = p->gated ? swiglu_bound(p, g[at], u[at], size[at], u_size[at])
                                    : sum_bound(p, size[at]) + 0x1p-126;
            double share = fabs(got - want[at]) / bound;
            if (!(share <= worst)) {
                worst = share, worst_at = at, worst_bound = bound, row = ref.rows[r], output = sample(p, j);
                if (isnan(share))
                    goto out;
            }
        }
out:
    report(p, worst, row, output, (double)p->out[(size_t)row * (size_t)p->outputs + (size_t)output],
           (double)want[worst_at], worst_bound);
    free(want);
    free(size);
    free(g);
    free(u);
    free(u_size);
}

START_TEST(a_row_of_gemm_is_the_same_in_every_batch_and_within_its_bound)
{
    struct problem p;
    problem_init(&p, shapes[_i].n, shapes[_i].k, 0, RANDOM);
    check_rows(&p, 1);
    check_rows(&p, 0);
    check_bound(&p);
    problem_deinit(&p);
}
END_TEST

START_TEST(a_row_of_swiglu_is_the_same_in_every_batch_and_within_its_bound)
{
    struct problem p;
    problem_init(&p, 2 * gated[_i].m, gated[_i].k, 1, RANDOM);
    check_rows(&p, 0);
    check_bound(&p);
    problem_deinit(&p);
}
END_TEST

/* 20000 products of at most 64 stay under 2^24, so every order of sums is exact; all outputs of some rows. */
START_TEST(small_integers_are_exact)
{
    struct problem p;
    problem_init(&p, shapes[_i].n, shapes[_i].k, 0, INTEGERS);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        run_batch(&p, MAX_ROWS, accumulate);
        int rows = (size_t)p.n * (size_t)p.k < 4000000 ? MAX_ROWS : 2;
        for (int r = 0; r < rows; r++) {
            int row = r * (MAX_ROWS - 1) / (rows - 1);
#pragma omp parallel for
            for (int j = 0; j < p.n; j++) {
                int sum = accumulate ? (int)start(row + j) : 0;
                for (int i = 0; i < p.k; i++)
                    sum += (int)weight(&p, j, i) * (int)input(&p, row, i);
                p.expected[(size_t)row * (size_t)p.n + (size_t)j] = (float)sum;
            }
            for (int j = 0; j < p.n; j++) {
                size_t at = (size_t)row * (size_t)p.n + (size_t)j;
                if (p.out[at] != p.expected[at])
                    ck_abort_msg("gemm [%d, %d]%s: row %d output %d is %g, exactly %g", p.n, p.k,
                                 accumulate ? " +=" : "", row, j, (double)p.out[at], (double)p.expected[at]);
            }
        }
    }
    problem_deinit(&p);
}
END_TEST

/* A feed-forward network whose output feeds its next input would overflow, so its residual alone grows: gate
 * and up to an act, down added to y, `times` over; between launches the host waits or does not. */
static void chain(const struct problem *up, const struct problem *down, void *stream, int rows, int times,
                  int wait)
{
    for (int i = 0; i < times; i++) {
        int part =
            i % 2 ? rows
                  : rows / 2 +
                        1; /* the act's rows change, so that a launch that does not wait reads old ones */
        struct gemm a = {
            .w = &up->w, .x = up->x + act_tile(up->k) * (size_t)(i % 3), .y = up->y, .rows = part};
        cuda_ok(swiglu_cuda(&a, stream), "launching");
        if (wait)
            cuda_ok(cudaDeviceSynchronize(), "waiting");
        struct gemm b = {.w = &down->w, .x = up->y, .y = down->y, .rows = part, .accumulate = 1};
        cuda_ok(gemm_cuda(&b, stream), "launching");
        if (wait)
            cuda_ok(cudaDeviceSynchronize(), "waiting");
    }
}

static void expect_chain(const struct problem *up, const struct problem *down, int rows, const char *how)
{
    download(down->host, down->y, down->y_bytes);
    memcpy(down->out, down->host, (size_t)rows * (size_t)down->outputs * sizeof(float));
    for (int i = 0; i < rows * down->outputs; i++)
        if (memcmp(&down->out[i], &down->expected[i], sizeof(float)) != 0)
            ck_abort_msg("swiglu [%d, %d], gemm [%d, %d], %s: row %d output %d is %a, with waits %a", up->n,
                         up->k, down->n, down->k, how, i / down->outputs, i % down->outputs,
                         (double)down->out[i], (double)down->expected[i]);
}

START_TEST(launches_that_overlap_give_what_launches_with_waits_give)
{
    enum { TIMES = 50 };
    static const int rows_of[] = {1, 8, 9, 33, 64};
    struct problem up, down;
    problem_init(&up, 2 * 1536, 576, 1, RANDOM);
    problem_init(&down, 576, 1536, 0, RANDOM);
    int rows = rows_of[_i];
    reset(&up);
    reset(&down);
    chain(&up, &down, NULL, rows, TIMES, 1);
    download(down.expected, down.y, down.y_bytes);
    ck_assert(down.expected[0] != start(0));
    reset(&down);
    chain(&up, &down, NULL, rows, TIMES, 0);
    expect_chain(&up, &down, rows, "no waits");
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    chain(&up, &down, stream, rows, TIMES, 0);
    cuda_ok(cudaStreamEndCapture(stream, &graph), "capturing");
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiating the graph");
    for (int replay = 0; replay < 10; replay++) {
        reset(&down);
        cuda_ok(cudaDeviceSynchronize(), "waiting");
        cuda_ok(cudaGraphLaunch(exec, stream), "launching the graph");
        cuda_ok(cudaStreamSynchronize(stream), "running the graph");
        expect_chain(&up, &down, rows, "in a graph");
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    problem_deinit(&up);
    problem_deinit(&down);
}
END_TEST

int main(void)
{
    int devices = 0;
    cudaError_t e = cudaGetDeviceCount(&devices);
    if (e != cudaSuccess || devices == 0) {
        printf("skipped: no CUDA device (%s)\n", cudaGetErrorString(e));
        return 77;
    }
    Suite *s = suite_create("cuda_gemm");
    TCase *t = tcase_create("gemm");
    tcase_add_loop_test(t, a_row_of_gemm_is_the_same_in_every_batch_and_within_its_bound, 0, N_SHAPES);
    tcase_add_loop_test(t, small_integers_are_exact, 0, N_SHAPES);
    suite_add_tcase(s, t);
    t = tcase_create("swiglu");
    tcase_add_loop_test(t, a_row_of_swiglu_is_the_same_in_every_batch_and_within_its_bound, 0, N_GATED);
    suite_add_tcase(s, t);
    t = tcase_create("launches");
    tcase_add_loop_test(t, launches_that_overlap_give_what_launches_with_waits_give, 0, 5);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_NOFORK);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
