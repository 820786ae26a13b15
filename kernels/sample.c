/* sample: no sort anywhere. Top-k and top-p both ask for the shortest prefix of the ids, best first, whose
 * weights (1 each, or the probabilities) reach a target. Logits become unsigned keys in the same order, and
 * three histograms over 11, 11 and 10 bits of the key find the one at which the target is reached: three
 * passes over the row, exact, ties by id. */
#include "kernels/sample.h"
#include "kernels/simd.h"
#include <math.h>

enum { BINS = 1 << 11 };

/* Larger logit, larger key; -0 equals +0; NaN comes last. Branch-free: signs of logits are as good as random.
 */
static uint32_t order_key(float x)
{
    uint32_t u;
    x += 0.0f;
    memcpy(&u, &x, sizeof u);
    u ^= (0u - (u >> 31)) | 0x80000000u;
    return x == x ? u : 0;
}

/* work [i] holds the key of id [i] during a selection. */
static uint32_t key_at(const struct sample_dist *d, int i)
{
    uint32_t key;
    memcpy(&key, &d->work[i], sizeof key);
    return key;
}

static void set_keys(struct sample_dist *d, const float *logits)
{
    for (int i = 0; i < d->n; i++) {
        uint32_t key = order_key(logits[d->id[i]]);
        memcpy(&d->work[i], &key, sizeof key);
    }
}

/* Sum in 8 lanes by index modulo 8: no long chain of additions. */
static double sum_of(const float *w, int n)
{
    double lane[8] = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            lane[j] += w[i + j];
    for (; i < n; i++)
        lane[i % 8] += w[i];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* The prefix ends among the ids whose key is `key`, after `equal` of them, lowest ids first. */
struct cut {
    uint32_t key;
    int equal;
};

/* Histogram of the weights of ids whose upper bits (key >> shift + bits) are `prefix`; w NULL: 1 each. */
static void histogram(const struct sample_dist *d, const float *w, uint32_t prefix, int shift, int bits,
                      double *bin)
{
    memset(bin, 0, sizeof *bin << bits);
    for (int i = 0; i < d->n; i++) {
        uint32_t key = key_at(d, i);
        if ((uint64_t)key >> (shift + bits) == prefix)
            bin[key >> shift & ((1u << bits) - 1)] += w ? w[i] : 1.0;
    }
}

/* Whatever rounding does to the sums, some bin is taken: at worst the lowest that holds any weight. */
static struct cut find_cut(const struct sample_dist *d, const float *w, double target)
{
    static const int shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
    double bin[BINS], above = 0;
    uint32_t prefix = 0;
    for (int level = 0; level < 3; level++) {
        int pick = -1;
        histogram(d, w, prefix, shifts[level], widths[level], bin);
        for (int b = (1 << widths[level]) - 1; b >= 0; b--) {
            if (!(bin[b] > 0))
                continue;
            if (pick >= 0)
                above += bin[pick];
            pick = b;
            if (above + bin[b] >= target)
                break;
        }
        prefix = prefix << widths[level] | (uint32_t)(pick < 0 ? 0 : pick);
    }
    struct cut cut = {prefix, 0};
    for (int i = 0; i < d->n && above < target; i++)
        if (key_at(d, i) == prefix) {
            above += w ? w[i] : 1.0;
            cut.equal++;
        }
    return cut;
}

/* Drop the ids behind the cut; prob moves along where it is set. */
static void keep_prefix(struct sample_dist *d, const float *logits, const float *w, double target)
{
    set_keys(d, logits);
    struct cut cut = find_cut(d, w, target);
    int n = 0;
    for (int i = 0; i < d->n; i++) {
        uint32_t key = key_at(d, i);
        if (key < cut.key || (key == cut.key && cut.equal-- <= 0))
            continue;
        d->id[n] = d->id[i];
        if (w)
            d->prob[n] = d->prob[i];
        n++;
    }
    d->n = n;
}

/* Logits of n <= 16 kept ids, `fill` behind them. As ids ascend, 16 in a row are seen by their ends. */
static struct v16 gather(const float *logits, const int *id, int n, float fill)
{
    float t[16];
    if (n == 16 && id[15] - id[0] == 15)
        return v16_load(logits + id[0]);
    for (int j = 0; j < 16; j++)
        t[j] = j < n ? logits[id[j]] : fill;
    return v16_load(t);
}

/* prob = exp((logit - max) / temperature); 0 where that is NaN, as the maximum of NaN and 0 is taken to be 0.
 */
static void weigh(struct sample_dist *d, const float *logits, float max, float temperature)
{
    for (int i = 0; i < d->n; i += 16) {
        int n = d->n - i < 16 ? d->n - i : 16;
        struct v16 x = gather(logits, d->id + i, n, max);
        V16_EACH x.r[i_] = (x.r[i_] - max) / temperature;
        x = v16_max(v16_exp(x), v16_set1(0.0f));
        if (n == 16)
            v16_store(d->prob + i, x);
        else
            memcpy(d->prob + i, &x, (size_t)n * sizeof *d->prob);
    }
}

static void keep_min_p(struct sample_dist *d, float min_p)
{
    float max = 0;
    int n = 0;
    for (int i = 0; i < d->n; i++)
        max = d->prob[i] > max ? d->prob[i] : max;
    for (int i = 0; i < d->n; i++)
        if (d->prob[i] >= min_p * max) {
            d->id[n] = d->id[i];
            d->prob[n++] = d->prob[i];
        }
    d->n = n;
}

void sample_dist_from_logits(struct sample_dist *d, const float *logits, int vocab, float max,
                             const struct sample_filter *f)
{
    d->n = vocab;
    for (int i = 0; i < vocab; i++)
        d->id[i] = i;
    if (f->top_k > 0 && f->top_k < vocab)
        keep_prefix(d, logits, NULL, f->top_k);
    weigh(d, logits, max, f->temperature);
    if (f->top_p < 1.0f)
        keep_prefix(d, logits, d->prob, (double)f->top_p * sum_of(d->prob, d->n));
    if (f->min_p > 0.0f)
        keep_min_p(d, f->min_p);
    double sum = sum_of(d->prob, d->n);
    if (!(sum > 0)) { /* nothing but NaN or -inf: a row no sampler can honour, yet the answer stays an id */
        d->n = 1;
        d->id[0] = 0;
        d->prob[0] = 1.0f;
        return;
    }
    double scale = 1 / sum;
    for (int i = 0; i < d->n; i++)
        d->prob[i] = (float)(d->prob[i] * scale);
}

float sample_dist_prob(const struct sample_dist *d, int v)
{
    int low = 0, high = d->n;
    while (low < high) {
        int mid = low + (high - low) / 2;
        if (d->id[mid] < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low < d->n && d->id[low] == v ? d->prob[low] : 0.0f;
}

int sample_categorical(const float *weight, int n, const struct sample_key *key, enum philox_use use,
                       uint32_t index)
{
    float u = philox_uniform(philox(key->seed, key->request, key->position, use, index).v[0]);
    double total = 0, reached = 0;
    int last = 0;
    for (int i = 0; i < n; i++)
        total += weight[i] > 0 ? weight[i] : 0.0;
    double target = u * total;
    for (int i = 0; i < n; i++) {
        if (!(weight[i] > 0))
            continue;
        reached += weight[i];
        last = i;
        if (reached > target)
            break;
    }
    return last;
}

static float noise_uniform(const struct sample_key *key, int id)
{
    return philox_uniform(philox(key->seed, key->request, key->position, PHILOX_TOKEN, (uint32_t)id).v[0]);
}

/* An id beats `best` when -log u < prob exp(-best). As 1 - u <= -log u, one with 1 - u above the right side
 * cannot, and that needs no logarithm; as 1 - u >= 1 - PHILOX_UNIFORM_MAX, one with little enough prob needs
 * no noise either. The right side is taken a millionth larger, far more than the rounding of any term here.
 */
int sample_gumbel(const struct sample_dist *d, const struct sample_key *key)
{
    int mode = 0, winner = -1;
    double best = -INFINITY, odds = INFINITY; /* odds: exp(-best), a millionth up */
    for (int i = 1; i < d->n; i++)
        if (d->prob[i] > d->prob[mode])
            mode = i;
    for (int turn = -1; turn < d->n; turn++) { /* the mode first: its score rules out most others */
        int i = turn < 0 ? mode : turn;
        if (!(d->prob[i] > 0) || d->prob[i] * odds < 1.0 - PHILOX_UNIFORM_MAX)
            continue;
        double u = noise_uniform(key, d->id[i]);
        if (1.0 - u > d->prob[i] * odds)
            continue;
        double score = log(d->prob[i]) - log(-log(u));
        if (score > best || (score == best && d->id[i] < winner)) {
            best = score;
            winner = d->id[i];
            odds = exp(-best) * (1 + 1e-6);
        }
    }
    return winner < 0 ? d->id[mode] : winner;
}
