/* test_model_config_llama4: the goldens' and the published configurations of Llama 4 key by key, every
 * spelling that files use, and one refusal a key. */
#include "engine/err.h"
#include "engine/model_config.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What Maverick and Scout have in common. */
#define PUBLISHED                                                                                            \
    "\"model_type\":\"llama4_text\",\"hidden_size\":5120,\"num_hidden_layers\":48,\"num_attention_heads\":"  \
    "40,\"num_key_value_heads\":8,\"head_dim\":128,\"intermediate_size\":8192,\"intermediate_size_mlp\":"    \
    "16384,\"num_experts_per_tok\":1,\"rope_theta\":500000.0,\"attention_chunk_size\":8192,"                 \
    "\"rms_norm_eps\":1e-05,\"vocab_size\":202048,\"hidden_act\":\"silu\",\"attention_bias\":false"
#define MULTIMODAL(text)                                                                                     \
    "{\"architectures\":[\"Llama4ForConditionalGeneration\"],\"model_type\":\"llama4\","                     \
    "\"tie_word_embeddings\":false,\"text_config\":{" text "},\"vision_config\":{\"hidden_size\":1408}}"
#define MAVERICK                                                                                             \
    MULTIMODAL(PUBLISHED ",\"num_local_experts\":128,\"interleave_moe_layer_step\":2,\"use_qk_norm\":false," \
                         "\"rope_scaling\":null,\"max_position_embeddings\":1048576")
#define SCOUT                                                                                                \
    MULTIMODAL(PUBLISHED ",\"num_local_experts\":16,\"interleave_moe_layer_step\":1,\"use_qk_norm\":true,"   \
                         "\"rope_scaling\":{\"factor\":16.0,\"high_freq_factor\":1.0,\"low_freq_factor\":"   \
                         "1.0,\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},"          \
                         "\"max_position_embeddings\":10485760,\"no_rope_layers\":[],"                       \
                         "\"attn_temperature_tuning\":4,\"attn_scale\":0.1,\"floor_scale\":8192")

static int parse(struct model_config *c, const char *json)
{
    return model_config_parse(c, json, strlen(json), "config.json");
}

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

/* A letter a layer: d dense, m MoE; capital where it does not rotate. */
static void expect_kinds(const struct model_config *c, const char *kinds)
{
    ck_assert_int_eq(c->layers, (int)strlen(kinds));
    for (int i = 0; i < c->layers; i++) {
        const int nope = kinds[i] == 'D' || kinds[i] == 'M', moe = kinds[i] == 'm' || kinds[i] == 'M';
        ck_assert_msg(c->kind[i] == (nope ? LAYER_NOPE : 0) + (moe ? LAYER_MOE : 0),
                      "layer %d is %d, expected %c", i, c->kind[i], kinds[i]);
    }
}

static const struct golden {
    const char *name, *architecture, *kinds;
    int want[12]; /* vocab, heads, kv_heads, ffn, its pad, ffn_dense, its pad, experts, top_k, chunk, qk_norm,
                     llama3 */
    float theta, floor;
} goldens[] = {
    {"maverick",
     "Llama4ForConditionalGeneration",
     "dmdMdmdM",
     {96, 4, 2, 16, 0, 32, 8, 8, 1, 16, 0, 0},
     500000,
     8},
    {"scout", "Llama4ForConditionalGeneration", "mmmM", {96, 4, 2, 16, 0, 48, 0, 4, 1, 16, 1, 1}, 500000, 8},
    {"text", "Llama4ForCausalLM", "DmdM", {97, 3, 1, 32, 8, 16, 0, 4, 2, 12, 0, 0}, 10000, 5},
    {"fp8_meta",
     "Llama4ForConditionalGeneration",
     "dmdM",
     {96, 4, 2, 16, 0, 48, 0, 8, 1, 16, 0, 0},
     500000,
     8},
    {"fp8_modelopt",
     "Llama4ForConditionalGeneration",
     "dmdM",
     {96, 4, 2, 16, 0, 48, 0, 8, 1, 16, 0, 0},
     500000,
     8}};

START_TEST(the_goldens_are_read_as_written)
{
    const struct golden *g = &goldens[_i];
    struct model_config c = {0};
    char dir[512];
    snprintf(dir, sizeof dir, "%s/llama4/%s", SPECBED_GOLDEN_DIR, g->name);
    ck_assert_msg(model_config_read(&c, dir) == 0, "%s", err_text());
    ck_assert_str_eq(c.architecture, g->architecture);
    expect_kinds(&c, g->kinds);
    ck_assert_int_eq(c.llama4, 1);
    ck_assert_int_eq(c.rope_interleaved, 1);
    ck_assert_int_eq(c.hidden, 32);
    ck_assert_int_eq(c.head_dim, 16);
    ck_assert_int_eq(c.max_positions, 1024);
    ck_assert_int_eq(c.tied, 0);
    ck_assert_float_eq(c.rms_eps, 1e-5f);
    const int found[] = {c.vocab,         c.heads,   c.kv_heads, c.ffn,   c.ffn_pad, c.ffn_dense,
                         c.ffn_dense_pad, c.experts, c.top_k,    c.chunk, c.qk_norm, c.rope_llama3};
    for (size_t i = 0; i < sizeof found / sizeof *found; i++)
        ck_assert_msg(found[i] == g->want[i], "number %zu is %d, expected %d", i, found[i], g->want[i]);
    ck_assert_float_eq(c.rope_theta, g->theta);
    ck_assert_float_eq(c.temperature_scale, 0.1f);
    ck_assert_float_eq(c.temperature_floor, g->floor);
}
END_TEST

/* Counts by hand: attention, dense, expert, router and two norms of 5120 a layer; two embeddings and a norm.
 */
START_TEST(published_shapes_have_their_parameters)
{
    const unsigned long attention = 62914560, dense = 251658240, expert = 125829120, norms = 2 * 5120,
                        ends = 2 * 1034485760UL + 5120;
    struct model_config c = {0};
    ck_assert_msg(parse(&c, MAVERICK) == 0, "%s", err_text());
    expect_kinds(&c, "dmdMdmdMdmdMdmdMdmdMdmdMdmdMdmdMdmdMdmdMdmdMdmdM");
    ck_assert_uint_eq(model_config_params(&c),
                      48 * (attention + norms) + 24 * dense + 24 * (129 * expert + 128 * 5120) + ends);
    ck_assert_float_eq(c.temperature_scale, 0.1f);
    ck_assert_float_eq(c.temperature_floor, 8192);
    ck_assert_int_eq(c.chunk, 8192);
    ck_assert_int_eq(c.qk_norm, 0);
    ck_assert_int_eq(c.ffn_pad + c.ffn_dense_pad, 0);
    memset(&c, 0, sizeof c);
    ck_assert_msg(parse(&c, SCOUT) == 0, "%s", err_text());
    expect_kinds(&c, "mmmMmmmMmmmMmmmMmmmMmmmMmmmMmmmMmmmMmmmMmmmMmmmM");
    ck_assert_uint_eq(model_config_params(&c), 48 * (attention + norms + 17 * expert + 16 * 5120) + ends);
    ck_assert_int_eq(c.qk_norm, 1);
    ck_assert_int_eq(c.rope_llama3, 1);
    ck_assert_int_eq(c.max_positions, 10485760);
}
END_TEST

#define SMALL                                                                                                \
    "{\"model_type\":\"llama4_text\",\"vocab_size\":96,\"hidden_size\":32,\"num_hidden_layers\":4,"          \
    "\"num_attention_heads\":2,\"intermediate_size\":40,\"intermediate_size_mlp\":16,\"num_local_experts\":" \
    "4"

START_TEST(what_a_file_leaves_out_is_what_transformers_takes)
{
    struct model_config c = {0};
    ck_assert_msg(parse(&c, SMALL "}") == 0, "%s", err_text());
    expect_kinds(&c, "mmmM");
    ck_assert_str_eq(c.architecture, "Llama4ForCausalLM");
    ck_assert_int_eq(c.head_dim, 128);
    ck_assert_int_eq(c.kv_heads, 2);
    ck_assert_int_eq(c.top_k, 1);
    ck_assert_int_eq(c.qk_norm, 1);
    ck_assert_int_eq(c.chunk, 8192);
    ck_assert_int_eq(c.ffn, 48);
    ck_assert_int_eq(c.ffn_pad, 8);
    ck_assert_int_eq(c.max_positions, 131072);
    ck_assert_float_eq(c.rope_theta, 500000);
    ck_assert_float_eq(c.rms_eps, 1e-5f);
    ck_assert_float_eq(c.temperature_scale, 0.1f);
}
END_TEST

START_TEST(every_spelling_of_a_switch_is_read)
{
    static const struct {
        const char *rest, *kinds;
        int chunk, tempered;
    } spelled[] = {{",\"attention_chunk_size\":null", "mmmM", 0, 1},
                   {",\"attention_chunk_size\":12", "mmmM", 12, 1},
                   {",\"attn_temperature_tuning\":4", "mmmM", 8192, 1},
                   {",\"attn_temperature_tuning\":true", "mmmM", 8192, 1},
                   {",\"attn_temperature_tuning\":null", "mmmM", 8192, 1},
                   {",\"attn_temperature_tuning\":false", "mmmM", 8192, 0},
                   {",\"attn_temperature_tuning\":0", "mmmM", 8192, 0},
                   {",\"attn_scale\":0", "mmmM", 8192, 0},
                   {",\"no_rope_layers\":null", "mmmM", 8192, 1},
                   {",\"no_rope_layers\":[0,1,true,false]", "MmmM", 8192, 1},
                   {",\"no_rope_layer_interval\":2", "mMmM", 8192, 1},
                   {",\"interleave_moe_layer_step\":3", "ddmD", 8192, 1},
                   {",\"moe_layers\":[0,3]", "mddM", 8192, 1},
                   {",\"moe_layers\":[]", "dddD", 8192, 1},
                   {",\"layer_types\":[\"chunked_attention\",\"chunked_attention\",\"chunked_attention\","
                    "\"full_attention\"]",
                    "mmmM", 8192, 1}};
    for (size_t i = 0; i < sizeof spelled / sizeof *spelled; i++) {
        struct model_config c = {0};
        char json[1024];
        snprintf(json, sizeof json, SMALL "%s}", spelled[i].rest);
        ck_assert_msg(parse(&c, json) == 0, "%s", err_text());
        expect_kinds(&c, spelled[i].kinds);
        ck_assert_int_eq(c.chunk, spelled[i].chunk);
        ck_assert_int_eq(c.temperature_scale != 0, spelled[i].tempered);
    }
}
END_TEST

START_TEST(the_nested_model_says_whether_its_head_is_tied)
{
    static const struct {
        const char *json;
        int tied;
    } heads[] = {{"{\"model_type\":\"llama4\",\"tie_word_embeddings\":true,\"text_config\":" SMALL "}}", 1},
                 {"{\"model_type\":\"llama4\",\"tie_word_embeddings\":true,\"text_config\":" SMALL
                  ",\"tie_word_embeddings\":false}}",
                  0},
                 {"{\"model_type\":\"llama4\",\"text_config\":" SMALL "}}", 0}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        struct model_config c = {0};
        ck_assert_msg(parse(&c, heads[i].json) == 0, "%s", err_text());
        ck_assert_str_eq(c.architecture, "Llama4ForConditionalGeneration");
        ck_assert_int_eq(c.tied, heads[i].tied);
    }
}
END_TEST

static const struct {
    const char *json; /* members after SMALL, or a whole file */
    int code;
    const char *sentence;
} bad[] = {
    {",\"attention_bias\":true", ERR_LIMIT, "'attention_bias' true is not computed"},
    {",\"hidden_act\":\"gelu\"", ERR_LIMIT, "'hidden_act' 'gelu' is not computed"},
    {",\"num_experts_per_tok\":5", ERR_FORMAT,
     "'num_experts_per_tok': expected at most 'num_local_experts' 4, found 5"},
    {",\"num_experts_per_tok\":0", ERR_FORMAT, "'num_experts_per_tok': expected an integer from 1"},
    {",\"head_dim\":24", ERR_LIMIT, "a head size of 24 is not computed"},
    {",\"no_rope_layers\":[1,1,0]", ERR_FORMAT,
     "'no_rope_layers': expected one element for each of 4 layers, found 3"},
    {",\"no_rope_layers\":[1,1,2,0]", ERR_FORMAT, "'no_rope_layers': expected integers from 0 to 1"},
    {",\"no_rope_layers\":[1,1,\"1\",0]", ERR_FORMAT, "found a string at 2"},
    {",\"no_rope_layers\":4", ERR_FORMAT, "'no_rope_layers': expected an array or null, found an integer"},
    {",\"moe_layers\":[4]", ERR_FORMAT, "'moe_layers': expected integers from 0 to 3"},
    {",\"interleave_moe_layer_step\":0", ERR_FORMAT,
     "'interleave_moe_layer_step': expected an integer from 1"},
    {",\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]",
     ERR_LIMIT,
     "'layer_types': expected 'chunked_attention' for layer 0, which rotates, found 'full_attention'"},
    {",\"attention_chunk_size\":0", ERR_FORMAT, "'attention_chunk_size': expected an integer from 1"},
    {",\"attn_temperature_tuning\":\"yes\"", ERR_FORMAT,
     "'attn_temperature_tuning': expected true, false or an integer, found a string"},
    {",\"attn_scale\":-1", ERR_FORMAT, "'attn_scale': expected a number from 0 to 1000, found -1"},
    {",\"floor_scale\":0", ERR_FORMAT, "'floor_scale': expected a number from 1"},
    {",\"use_qk_norm\":1", ERR_FORMAT, "'use_qk_norm': expected true or false"},
    {",\"rope_scaling\":{\"rope_type\":\"yarn\"}", ERR_LIMIT, "rope type 'yarn' is not computed"},
    {",\"architectures\":[\"Llama4ForConditionalGeneration\"]", ERR_LIMIT,
     "'model_type' 'llama4_text' is not computed; this program computes llama4"},
    {"{\"model_type\":\"llama4\"}", ERR_FORMAT, "'text_config': expected an object, found nothing"},
    {"{\"model_type\":\"llama4_text\",\"vocab_size\":96,\"hidden_size\":32,\"num_hidden_layers\":513}",
     ERR_FORMAT, "'num_hidden_layers': expected an integer from 1 to 512, found 513"},
    {"{\"model_type\":\"llama4_text\",\"vocab_size\":96,\"hidden_size\":32,\"num_hidden_layers\":4,"
     "\"num_attention_heads\":2,\"intermediate_size\":16,\"intermediate_size_mlp\":16}",
     ERR_FORMAT, "'num_local_experts': expected an integer, found nothing"},
    {",\"quantization_config\":1", ERR_FORMAT, "'quantization_config': expected an object or null"},
    {",\"quantization_config\":{}", ERR_FORMAT, "'quant_method': expected a string, found nothing"},
    {",\"quantization_config\":{\"quant_method\":\"gptq\"}", ERR_LIMIT,
     "'quant_method' 'gptq' is not computed"},
    {",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\"}",
     ERR_LIMIT, "'format' 'pack-quantized' is not computed; this program reads FP8"},
    {",\"quantization_config\":{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\"}", ERR_LIMIT,
     "'quant_algo' 'NVFP4' is not computed; this program reads FP8"},
    {",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":{"
     "\"weights\":"
     "{\"num_bits\":4}}}}",
     ERR_LIMIT, "'num_bits' 4 is not computed"},
    {",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":{"
     "\"weights\":"
     "{\"type\":\"int\"}}}}",
     ERR_LIMIT, "'type' 'int' is not computed"},
    {",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":{"
     "\"weights\":"
     "{\"strategy\":\"group\"}}}}",
     ERR_LIMIT, "'strategy' 'group' is not computed; this program computes tensor and channel"},
    {",\"quantization_config\":{\"quant_method\":\"modelopt\",\"config_groups\":{\"a\":{}}}", ERR_FORMAT,
     "'config_groups': expected an object 'weights' in each, found nothing"},
    {",\"quantization_config\":{\"quant_method\":\"modelopt\",\"config_groups\":[]}", ERR_FORMAT,
     "'config_groups': expected an object, found an array"},
};

START_TEST(what_is_not_computed_is_refused_by_name)
{
    char json[1024];
    struct model_config c = {.vocab = 77};
    const int whole = bad[_i].json[0] == '{';
    snprintf(json, sizeof json, "%s%s%s", whole ? "" : SMALL, bad[_i].json, whole ? "" : "}");
    expect_error(parse(&c, json), bad[_i].code, bad[_i].sentence);
    ck_assert_int_eq(c.vocab, 77); /* written only on success */
}
END_TEST

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(a_rounding_described_in_a_file_of_its_own_is_checked)
{
    char dir[] = "/tmp/test_model_config_XXXXXX", config[64], quant[64];
    struct model_config c = {0};
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(config, sizeof config, "%s/config.json", dir);
    snprintf(quant, sizeof quant, "%s/hf_quant_config.json", dir);
    write_file(config, SMALL "}");
    write_file(quant, "{\"quantization\":{\"quant_algo\":\"FP8\"}}");
    ck_assert_msg(model_config_read(&c, dir) == 0, "%s", err_text());
    write_file(quant, "{\"quantization\":{\"quant_algo\":\"NVFP4\"}}");
    expect_error(model_config_read(&c, dir), ERR_LIMIT,
                 "hf_quant_config.json: 'quant_algo' 'NVFP4' is not computed");
    write_file(quant, "{}");
    expect_error(model_config_read(&c, dir), ERR_FORMAT, "'quantization': expected an object, found nothing");
    unlink(config);
    unlink(quant);
    rmdir(dir);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model_config_llama4");
    TCase *reads = tcase_create("reads"), *refuses = tcase_create("refuses");
    tcase_add_loop_test(reads, the_goldens_are_read_as_written, 0, sizeof goldens / sizeof *goldens);
    tcase_add_test(reads, published_shapes_have_their_parameters);
    tcase_add_test(reads, what_a_file_leaves_out_is_what_transformers_takes);
    tcase_add_test(reads, every_spelling_of_a_switch_is_read);
    tcase_add_test(reads, the_nested_model_says_whether_its_head_is_tied);
    tcase_add_loop_test(refuses, what_is_not_computed_is_refused_by_name, 0, sizeof bad / sizeof *bad);
    tcase_add_test(refuses, a_rounding_described_in_a_file_of_its_own_is_checked);
    suite_add_tcase(s, reads);
    suite_add_tcase(s, refuses);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
