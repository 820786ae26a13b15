/* head: random heads of every published layout against what their trainers' own modules compute
 * (tests/golden/make_eagle3.py), the draft tree node for node, and what a bad head is told. */
#include "engine/head.h"
#include "drafts/drafts.h"
#include "engine/err.h"
#include "engine/json.h"
#include "engine/log.h"
#include "tests/golden.h"
#include <math.h>
#include <unistd.h>

enum { HIDDEN = 32, DIM = 16, HEADS = 4, FFN = 48 };

static const struct layout {
    const char *name, *target;
} layouts[] = {{"safeailab", "tiny/f32"}, {"specforge", "tiny/f32"},     {"wide", "tiny/untied"},
               {"trained", "tiny/f32"},   {"nvidia", "llama4/maverick"}, {"fc_norm", "tiny/f32"},
               {"qwen3", "tiny/f32"},     {"converted", "tiny/f32"}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

struct scene {
    struct backend be;
    struct model target;
    char dir[256];
    struct golden g;
    int n, steps, vocab, width, n_trees;
    int *tokens, *drafted;
    float *taps, *true_logits, *step_logits;
    double
        of_rms; /* how far a logit may be off, of the root mean square of its row; 0: by the bound of f32 */
};

static void open_target(struct scene *s, const char *name)
{
    const struct backend_opts opts = {.threads = 1, .isa = "auto"};
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&s->be, "cpu", &opts), 0);
    snprintf(s->dir, sizeof s->dir, SPECBED_GOLDEN_DIR "/%s", name);
    ck_assert_msg(model_load(&s->target, &s->be, s->dir, NULL) == 0, "%s", err_text());
}

static struct scene *open_scene(const struct layout *l)
{
    struct scene *s = calloc(1, sizeof *s);
    char path[300];
    open_target(s, l->target);
    snprintf(s->dir, sizeof s->dir, SPECBED_GOLDEN_DIR "/eagle3/%s", l->name);
    snprintf(path, sizeof path, "%s/golden.bin", s->dir);
    s->g = golden_open(path, "SBEAGLE3");
    s->n = golden_int(&s->g);
    s->steps = golden_int(&s->g);
    s->vocab = golden_int(&s->g);
    s->width = golden_int(&s->g);
    s->n_trees = golden_int(&s->g);
    s->tokens = golden_ints(&s->g, s->n + 1);
    s->taps = golden_floats(&s->g, 3 * s->n * s->width);
    s->true_logits = golden_floats(&s->g, s->n * s->vocab);
    s->drafted = golden_ints(&s->g, s->steps);
    s->step_logits = golden_floats(&s->g, s->steps * s->vocab);
    return s;
}

static void close_scene(struct scene *s)
{
    golden_close(&s->g);
    free(s->tokens);
    free(s->taps);
    free(s->true_logits);
    free(s->drafted);
    free(s->step_logits);
    model_deinit(&s->target);
    backend_close(&s->be);
    free(s);
}

/* A row that follows `depth` others of its kind is `depth` layers deep, and the first of them has fc before
 * it: a sum of 3 widths, which stands for all of its widths here. */
static double bound_of(const struct scene *s, int depth, const float *logits)
{
    const struct model_config c = {
        .layers = 1 + depth, .hidden = 3 * s->width, .heads = HEADS, .head_dim = DIM, .ffn = FFN};
    const double rms = golden_rms(logits, s->vocab);
    return s->of_rms > 0 ? s->of_rms * rms : golden_bound(&c, s->n + depth, rms);
}

/* The largest share of its bound that a logit is off by. */
static double share_of(const struct scene *s, const float *got, const float *expected, int depth)
{
    const double bound = bound_of(s, depth, expected);
    double worst = 0;
    for (int i = 0; i < s->vocab; i++) {
        const double off = fabs((double)got[i] - (double)expected[i]);
        worst = off > worst || !(off <= bound) ? off / bound : worst;
    }
    return worst;
}

static void fill_true_rows(const struct scene *s, struct head_pass *p, struct head_row *row)
{
    for (int i = 0; i < s->n; i++) {
        row[i] = (struct head_row){.token = s->tokens[i + 1], .pos = i, .cell = i, .base = i + 1};
        for (int t = 0; t < HEAD_TAPS; t++)
            memcpy(p->feature + (size_t)(t * p->max_rows + i) * (size_t)s->width,
                   s->taps + (size_t)(t * s->n + i) * (size_t)s->width, (size_t)s->width * sizeof(float));
    }
}

/* The worst share of the bound over all rows, run as blocks of at most `block`. */
static double run_chain(const struct scene *s, struct head *h, int block)
{
    struct head_pass p;
    struct head_row row[32], part[32];
    double worst = 0;
    ck_assert_int_eq(head_pass_init(&p, h, 1, 32, 32, 8), 0);
    for (int at = 0; at < s->n; at += block) {
        const int n = s->n - at < block ? s->n - at : block;
        fill_true_rows(s, &p, row);
        for (int i = 0; i < n; i++) {
            part[i] = row[at + i];
            for (int t = 0; t < HEAD_TAPS; t++)
                memmove(p.feature + (size_t)(t * p.max_rows + i) * (size_t)s->width,
                        p.feature + (size_t)(t * p.max_rows + at + i) * (size_t)s->width,
                        (size_t)s->width * sizeof(float));
        }
        ck_assert_int_eq(head_pass_run(&p, part, n, 1), 0);
        for (int i = 0; i < n; i++)
            worst =
                fmax(worst, share_of(s, p.logits + i * s->vocab, s->true_logits + (at + i) * s->vocab, 0));
        memmove(p.x, p.x + (n - 1) * HIDDEN, HIDDEN * sizeof(float));
    }
    for (int k = 1; k < s->steps; k++) {
        const int pos = s->n + k - 1;
        const struct head_row own = {.token = s->drafted[k - 1], .pos = pos, .cell = pos, .base = pos + 1};
        ck_assert_int_eq(head_pass_run(&p, &own, 1, 0), 0);
        worst = fmax(worst, share_of(s, p.logits, s->step_logits + k * s->vocab, k));
    }
    head_pass_deinit(&p);
    return worst;
}

static void skip_trees(struct scene *s)
{
    s->g.at = s->g.n;
}

START_TEST(logits_of_every_step_are_the_trainers_modules)
{
    struct scene *s = open_scene(&layouts[_i]);
    struct head h;
    ck_assert_msg(head_open(&h, &s->target, s->dir, MODEL_BF16) == 0, "%s: %s", s->dir, err_text());
    ck_assert_int_eq(h.cfg.vocab, s->vocab);
    ck_assert_int_eq(h.cfg.target_hidden, s->width);
    ck_assert_int_eq(h.cfg.hidden, HIDDEN);
    for (int block = 1; block <= s->n; block += 4) {
        const double worst = run_chain(s, &h, block);
        printf("%s, blocks of %d: %.1f %% of the bound\n", layouts[_i].name, block, 100 * worst);
        ck_assert_double_le(worst, 1);
    }
    head_close(&h);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* Every variant that a config can name changes the logits by far more than the bound: a flag that were read
 * and not used would be seen. */
START_TEST(a_flag_left_out_is_far_outside_of_the_bound)
{
    static const struct {
        int layout, flag;
    } cases[] = {{0, 0}, {1, 1}, {1, 5}, {3, 0}, {3, 2}, {3, 3}, {5, 1}, {6, 4}, {6, 2}};
    struct scene *s = open_scene(&layouts[cases[_i].layout]);
    struct head h;
    ck_assert_int_eq(head_open(&h, &s->target, s->dir, MODEL_BF16), 0);
    int *const flags[] = {&h.cfg.norm_before_residual, &h.cfg.fc_norm, NULL, &h.cfg.feed_normed, NULL, NULL};
    if (flags[cases[_i].flag])
        *flags[cases[_i].flag] = !*flags[cases[_i].flag];
    if (cases[_i].flag == 2)
        for (int i = 0; i < 3 * s->width; i++)
            h.input_norm[i] = 1;
    if (cases[_i].flag == 4)
        for (int i = 0; i < DIM; i++)
            h.qk_gain[i] = 1;
    if (cases[_i].flag == 5) {
        h.cfg.rope.rope_llama3 = 0;
        model_config_inv_freq(&h.cfg.rope, h.inv_freq);
    }
    ck_assert_double_gt(run_chain(s, &h, s->n), 10);
    head_close(&h);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* The strategy, told of the golden's features as if the loop had run a prompt. */
static void propose(const struct scene *s, enum accept_kind rule, const double *option, struct tree *out)
{
    const struct draft_ops *ops = &draft_eagle3;
    const struct draft_env env = {.be = (struct backend *)&s->be,
                                  .target = &s->target,
                                  .slots = 1,
                                  .cap = 64,
                                  .vocab = s->target.cfg.vocab,
                                  .max_depth = out->max_depth,
                                  .max_nodes = out->max_nodes,
                                  .head = s->dir,
                                  .rule = rule,
                                  .option = option};
    struct draft_hidden hidden = {
        .rows = s->taps, .prompt = s->taps, .max_rows = s->n, .max_prompt_rows = s->n};
    const struct draft_text text = {.tokens = s->tokens, .n = s->n + 1, .n_prompt = s->n + 1};
    void *self = NULL;
    ck_assert_msg(ops->open(&self, &env) == 0, "%s", err_text());
    ops->tap(self, &hidden);
    ck_assert_int_eq(ops->prefilled(self, 0, s->tokens, 0, s->n), 0);
    ck_assert_int_eq(ops->begin(self, &text), 0);
    ck_assert_int_eq(ops->propose(self, &text, 1, out), 0);
    ops->close(self);
}

START_TEST(the_dynamic_tree_is_the_references_node_for_node)
{
    struct scene *s = open_scene(&layouts[_i]);
    for (int i = 0; i < s->n_trees; i++) {
        const double option[] = {2, golden_int(&s->g), 0, 0};
        const int depth = golden_int(&s->g), most = golden_int(&s->g), n = golden_int(&s->g);
        struct tree t;
        ck_assert_int_eq(tree_init(&t, most, depth), 0);
        propose(s, ACCEPT_GREEDY, option, &t);
        ck_assert_int_eq(t.n, n);
        for (int k = 0; k < n; k++) {
            int expected[3];
            float log_q;
            golden_read(&s->g, expected, sizeof expected);
            golden_read(&s->g, &log_q, sizeof log_q);
            ck_assert_msg(t.nodes[k].token == expected[0] && t.nodes[k].parent == expected[1] &&
                              t.nodes[k].depth == expected[2],
                          "%s, tree %d, node %d is %d under %d, expected %d under %d", layouts[_i].name, i, k,
                          t.nodes[k].token, t.nodes[k].parent, expected[0], expected[1]);
            ck_assert_double_eq_tol(t.nodes[k].log_q, log_q, 1e-4);
        }
        tree_deinit(&t);
    }
    close_scene(s);
}
END_TEST

START_TEST(the_chain_is_the_references_token_for_token)
{
    struct scene *s = open_scene(&layouts[_i]);
    const double option[] = {0, 1, 0, 0};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, s->steps, s->steps), 0);
    propose(s, ACCEPT_GREEDY, option, &t);
    ck_assert_int_eq(t.n, s->steps);
    for (int k = 0; k < t.n; k++) {
        ck_assert_int_eq(t.nodes[k].token, s->drafted[k]);
        ck_assert_int_eq(t.nodes[k].parent, k - 1);
    }
    tree_deinit(&t);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* E4M3 keeps 3 bits: a weight is off by at most 2^-4 of itself, with deviation 2^-4 / sqrt(3), and so is a
 * sum of its products. Six sums stand in line in a row and five rows in a chain: 2^-4 / sqrt(3) * sqrt(30) =
 * 0.2 of a logit's own deviation, of which six are allowed. */
START_TEST(weights_in_fp8_change_logits_within_what_rounding_allows)
{
    struct scene *s = open_scene(&layouts[_i]);
    struct head h;
    ck_assert_int_eq(head_open(&h, &s->target, s->dir, MODEL_FP8), 0);
    ck_assert_int_eq(h.down.form, MATRIX_FP8);
    ck_assert_int_eq(h.fc.form, MATRIX_FP8);
    ck_assert_double_gt(run_chain(s, &h, s->n), 10); /* the bound of f32: something was rounded */
    s->of_rms = 6 * 0.2;
    const double worst = run_chain(s, &h, s->n);
    printf("%s in FP8: %.0f %% of what rounding allows\n", layouts[_i].name, 100 * worst);
    ck_assert_double_le(worst, 1);
    head_close(&h);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* ---- bad heads ---- */

/* A copy of a golden head in a folder of its own, with one thing changed. */
struct copy {
    char dir[64];
    unsigned char *bytes; /* of model.safetensors, after its length and header */
    json_t *config, *header;
    size_t n;
};

static unsigned char *read_whole(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    unsigned char *bytes = malloc(*n);
    ck_assert_uint_eq(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

static struct copy copy_head(const char *layout)
{
    struct copy c = {.dir = "/tmp/specbed-head-XXXXXX"};
    char path[300];
    uint64_t length;
    ck_assert_ptr_nonnull(mkdtemp(c.dir));
    snprintf(path, sizeof path, SPECBED_GOLDEN_DIR "/eagle3/%s/config.json", layout);
    ck_assert_int_eq(json_read_file(path, &c.config), 0);
    snprintf(path, sizeof path, SPECBED_GOLDEN_DIR "/eagle3/%s/model.safetensors", layout);
    c.bytes = read_whole(path, &c.n);
    memcpy(&length, c.bytes, sizeof length);
    ck_assert_int_eq(json_parse((char *)c.bytes + 8, length, path, &c.header), 0);
    memmove(c.bytes, c.bytes + 8 + length, c.n - 8 - length);
    c.n -= 8 + length;
    return c;
}

static void write_copy(const struct copy *c)
{
    char path[128];
    char *header = json_dumps(c->header, JSON_COMPACT | JSON_PRESERVE_ORDER);
    const uint64_t length = strlen(header);
    snprintf(path, sizeof path, "%s/config.json", c->dir);
    ck_assert_int_eq(json_dump_file(c->config, path, 0), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", c->dir);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    fwrite(&length, sizeof length, 1, f);
    fwrite(header, 1, length, f);
    fwrite(c->bytes, 1, c->n, f);
    fclose(f);
    free(header);
}

static void drop_copy(struct copy *c)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char path[128];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", c->dir, files[i]);
        remove(path);
    }
    ck_assert_int_eq(rmdir(c->dir), 0);
    json_decref(c->config);
    json_decref(c->header);
    free(c->bytes);
}

static void *data_of(struct copy *c, const char *tensor)
{
    const json_t *at = json_object_get(json_object_get(c->header, tensor), "data_offsets");
    ck_assert_ptr_nonnull(at);
    return c->bytes + json_integer_value(json_array_get(at, 0));
}

static void rename_tensor(struct copy *c, const char *from, const char *to)
{
    json_object_set(c->header, to, json_object_get(c->header, from));
    json_object_del(c->header, from);
}

/* Opening it for the target gives this error, with a sentence that has these words. */
static void assert_refused(struct copy *c, const char *target, int code, const char *const *words)
{
    struct scene s = {.n = 0};
    struct head h;
    write_copy(c);
    open_target(&s, target);
    const int rc = head_open(&h, &s.target, c->dir, MODEL_BF16);
    ck_assert_msg(rc == code, "expected error %d, found %d: %s", code, rc, rc ? err_text() : "");
    ck_assert_ptr_null(h.be);
    for (; *words; words++)
        ck_assert_msg(strstr(err_text(), *words) != NULL, "expected '%s' in: %s", *words, err_text());
    model_deinit(&s.target);
    backend_close(&s.be);
    drop_copy(c);
}

/* One key of config.json, or of an object in it. */
static const struct config_fault {
    const char *layout, *inside, *key, *value; /* value: JSON; NULL: the key goes */
    int code;
    const char *words[4];
} config_faults[] = {
    {"safeailab", NULL, "flux", "1", ERR_LIMIT, {"'flux'", "known"}},
    {"safeailab", NULL, "hidden_size", "64", ERR_CONFIG, {"width 64", "has 32", "head of this model"}},
    {"safeailab", NULL, "vocab_size", "128", ERR_CONFIG, {"128 ids", "has 97", "head of this model"}},
    {"safeailab", NULL, "draft_vocab_size", "98", ERR_CONFIG, {"98 drafted", "97"}},
    {"safeailab", NULL, "draft_vocab_size", "null", ERR_FORMAT, {"lm_head.weight", "[97, 32]", "[48, 32]"}},
    {"safeailab", NULL, "hidden_size", "\"big\"", ERR_FORMAT, {"'hidden_size'", "integer", "string"}},
    {"safeailab", NULL, "hidden_size", NULL, ERR_FORMAT, {"'hidden_size'", "nothing"}},
    {"safeailab", NULL, "hidden_act", "\"gelu\"", ERR_LIMIT, {"silu", "gelu"}},
    {"safeailab", NULL, "model_type", "\"qwen2\"", ERR_LIMIT, {"'model_type'", "qwen2"}},
    {"safeailab", NULL, "model_type", "\"qwen3\"", ERR_FORMAT, {"q_norm.weight"}},
    {"safeailab", NULL, "num_hidden_layers", "2", ERR_LIMIT, {"'num_hidden_layers'", "found 2"}},
    {"safeailab", NULL, "attention_bias", "true", ERR_LIMIT, {"'attention_bias'"}},
    {"safeailab", NULL, "bias", "true", ERR_LIMIT, {"'bias'"}},
    {"safeailab", NULL, "norm_output", "false", ERR_LIMIT, {"'norm_output'"}},
    {"safeailab", NULL, "norm_before_fc", "true", ERR_FORMAT, {"input_norm.weight"}},
    {"safeailab", NULL, "fc_norm", "true", ERR_FORMAT, {"fc_norm.0.weight"}},
    {"safeailab", NULL, "head_dim", "24", ERR_LIMIT, {"head_dim", "16"}},
    {"safeailab", NULL, "num_key_value_heads", "3", ERR_LIMIT, {"equal groups"}},
    {"safeailab", NULL, "num_attention_heads", "2", ERR_FORMAT, {"q_proj", "[32, 64]", "[64, 64]"}},
    {"safeailab", NULL, "rms_norm_eps", "0", ERR_FORMAT, {"'rms_norm_eps'"}},
    {"safeailab",
     NULL,
     "rope_scaling",
     "{\"rope_type\": \"yarn\", \"factor\": 32}",
     ERR_LIMIT,
     {"yarn", "llama3"}},
    {"safeailab", NULL, "rope_scaling", "{\"rope_type\": \"llama3\"}", ERR_FORMAT, {"'factor'"}},
    {"safeailab", NULL, "layer_types", "[\"chunked_attention\"]", ERR_LIMIT, {"'layer_types'", "chunked"}},
    {"safeailab", NULL, "layer_types", "[]", ERR_FORMAT, {"'layer_types'"}},
    {"safeailab", NULL, "use_sliding_window", "true", ERR_LIMIT, {"'use_sliding_window'"}},
    {"safeailab", NULL, "target_hidden_size", "64", ERR_CONFIG, {"width 64", "has 32"}},
    {"specforge", NULL, "fc_norm", "false", ERR_FORMAT, {"fc_norm.0.weight"}},
    {"specforge",
     NULL,
     "rope_parameters",
     "{\"rope_type\": \"default\"}",
     ERR_FORMAT,
     {"'rope_parameters'", "'rope_scaling'", "llama3"}},
    {"nvidia",
     "eagle_config",
     "eh_proj_before_attn",
     "true",
     ERR_LIMIT,
     {"eagle_config.eh_proj_before_attn"}},
    {"nvidia", "eagle_config", "next_layer_regular", "true", ERR_LIMIT, {"eagle_config.next_layer_regular"}},
    {"nvidia", "eagle_config", "use_last_layernorm", "false", ERR_LIMIT, {"eagle_config.use_last_layernorm"}},
    {"nvidia", "eagle_config", "eagle_aux_hidden_state_layer_ids", "[1, 3]", ERR_FORMAT, {"3 layers"}},
    {"nvidia",
     "eagle_config",
     "eagle_aux_hidden_state_layer_ids",
     "[1, 3, 7]",
     ERR_CONFIG,
     {"layer 8", "last is 7"}},
    {"nvidia", "eagle_config", "eagle_aux_hidden_state_layer_ids", "[1, \"x\", 4]", ERR_FORMAT, {"numbers"}},
    {"nvidia", NULL, "draft_vocab_size", "40", ERR_FORMAT, {"lm_head.weight"}},
    {"trained", NULL, "norm_before_fc", "false", ERR_FORMAT, {"input_norm.weight"}},
    {"trained", NULL, "fc_norm", "true", ERR_FORMAT, {"'norm_before_fc'", "'fc_norm'"}},
    {"trained", "transformer_layer_config", "flux", "1", ERR_LIMIT, {"'flux'"}},
    {"trained", "transformer_layer_config", "model_type", "\"llama4_text\"", ERR_LIMIT, {"llama4_text"}},
    {"qwen3", "transformer_layer_config", "model_type", "\"llama\"", ERR_FORMAT, {"_norm.weight"}},
};
enum { N_CONFIG_FAULTS = sizeof config_faults / sizeof *config_faults };

static const char *target_of(const char *layout)
{
    for (int i = 0; i < N_LAYOUTS; i++)
        if (strcmp(layouts[i].name, layout) == 0)
            return layouts[i].target;
    return NULL;
}

START_TEST(a_field_that_does_not_fit_is_named)
{
    const struct config_fault *f = &config_faults[_i];
    struct copy c = copy_head(f->layout);
    json_t *o = f->inside ? json_object_get(c.config, f->inside) : c.config;
    ck_assert(json_is_object(o));
    if (f->value)
        json_object_set_new(o, f->key, json_loads(f->value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(o, f->key);
    assert_refused(&c, target_of(f->layout), f->code, f->words);
}
END_TEST

START_TEST(a_head_of_another_target_is_told_so)
{
    struct copy wide = copy_head("wide"), maverick = copy_head("nvidia");
    assert_refused(&wide, "tiny/f32", ERR_CONFIG, (const char *[]){"width 64", "has 32", NULL});
    assert_refused(&maverick, "tiny/f32", ERR_CONFIG, (const char *[]){"96 ids", "has 97", NULL});
}
END_TEST

START_TEST(a_tensor_that_is_missing_or_not_known_is_named)
{
    static const char *const names[] = {"fc.weight",
                                        "norm.weight",
                                        "lm_head.weight",
                                        "d2t",
                                        "midlayer.input_layernorm.weight",
                                        "midlayer.post_attention_layernorm.weight",
                                        "midlayer.self_attn.q_proj.weight",
                                        "midlayer.self_attn.k_proj.weight",
                                        "midlayer.self_attn.v_proj.weight",
                                        "midlayer.self_attn.o_proj.weight",
                                        "midlayer.mlp.gate_proj.weight",
                                        "midlayer.mlp.up_proj.weight",
                                        "midlayer.mlp.down_proj.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct copy c = copy_head("safeailab");
        rename_tensor(&c, names[i], "something.else");
        assert_refused(&c, "tiny/f32", ERR_FORMAT, (const char *[]){names[i], NULL});
    }
    struct copy c = copy_head("safeailab");
    rename_tensor(&c, "t2d", "something.else"); /* which a loader needs not */
    assert_refused(&c, "tiny/f32", ERR_FORMAT, (const char *[]){"something.else", NULL});
}
END_TEST

/* Entry 5 leads elsewhere: to an id that t2d does not mark, to that of entry 6, out of the vocabulary. */
START_TEST(vocabulary_maps_that_disagree_are_told_apart)
{
    struct copy c[5];
    int64_t *d2t[5];
    for (int i = 0; i < 5; i++) {
        c[i] = copy_head("safeailab");
        d2t[i] = data_of(&c[i], "d2t");
    }
    const unsigned char *marked = data_of(&c[0], "t2d");
    int free_id = 0;
    while (marked[free_id])
        free_id++;
    d2t[0][5] = free_id - 5;
    d2t[1][5] = d2t[1][6] + 1;
    d2t[2][5] = 97 - 5;
    d2t[3][5] = INT64_MIN;
    ((unsigned char *)data_of(&c[4], "t2d"))[free_id] = 1;
    assert_refused(&c[0], "tiny/f32", ERR_FORMAT,
                   (const char *[]){"'t2d' and 'd2t' disagree", "draft id 5", NULL});
    assert_refused(&c[1], "tiny/f32", ERR_FORMAT, (const char *[]){"'d2t'", "twice", NULL});
    assert_refused(&c[2], "tiny/f32", ERR_FORMAT, (const char *[]){"'d2t'", "entry 5", "96", NULL});
    assert_refused(&c[3], "tiny/f32", ERR_FORMAT, (const char *[]){"'d2t'", "entry 5", NULL});
    assert_refused(&c[4], "tiny/f32", ERR_FORMAT,
                   (const char *[]){"'t2d' and 'd2t' disagree", "48 marked", "49", NULL});
}
END_TEST

START_TEST(a_config_of_no_object_or_no_file_gets_a_sentence)
{
    struct scene s = {.n = 0};
    struct head_config c;
    struct head h;
    open_target(&s, "tiny/f32");
    ck_assert_int_eq(head_config_parse(&c, &s.target.cfg, "[1]", 3, "x.json"), ERR_FORMAT);
    ck_assert_ptr_nonnull(strstr(err_text(), "x.json: expected an object, found an array"));
    ck_assert_int_eq(head_config_parse(&c, &s.target.cfg, "{", 1, "x.json"), ERR_FORMAT);
    ck_assert_int_eq(head_open(&h, &s.target, "/nowhere", MODEL_BF16), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "/nowhere/config.json"));
    model_deinit(&s.target);
    backend_close(&s.be);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("head");
    TCase *c = tcase_create("golden");
    tcase_add_loop_test(c, logits_of_every_step_are_the_trainers_modules, 0, N_LAYOUTS);
    tcase_add_loop_test(c, a_flag_left_out_is_far_outside_of_the_bound, 0, 9);
    tcase_add_loop_test(c, the_dynamic_tree_is_the_references_node_for_node, 0, N_LAYOUTS);
    tcase_add_loop_test(c, the_chain_is_the_references_token_for_token, 0, N_LAYOUTS);
    tcase_add_loop_test(c, weights_in_fp8_change_logits_within_what_rounding_allows, 0, N_LAYOUTS);
    suite_add_tcase(s, c);
    c = tcase_create("bad heads");
    tcase_add_loop_test(c, a_field_that_does_not_fit_is_named, 0, N_CONFIG_FAULTS);
    tcase_add_test(c, a_head_of_another_target_is_told_so);
    tcase_add_test(c, a_tensor_that_is_missing_or_not_known_is_named);
    tcase_add_test(c, vocabulary_maps_that_disagree_are_told_apart);
    tcase_add_test(c, a_config_of_no_object_or_no_file_gets_a_sentence);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
