/* test_model_config: published configurations, the check values of their rotary frequencies, and one refusal
 * a key. */
#include "engine/model_config.h"
#include "engine/err.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LLAMA_8B                                                                                             \
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":128256,\"hidden_"      \
    "size\":4096,"                                                                                           \
    "\"intermediate_size\":14336,\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_"       \
    "heads\":8,"                                                                                             \
    "\"max_position_embeddings\":131072,\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"rope_theta\":"      \
    "500000.0"
#define BANDS                                                                                                \
    "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":"  \
    "8192"
#define SMOLLM2                                                                                              \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":49152,\"hidden_"      \
    "size\":576,"                                                                                            \
    "\"intermediate_size\":1536,\"num_hidden_layers\":30,\"num_attention_heads\":9,\"num_key_value_heads\":" \
    "3,"                                                                                                     \
    "\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"rope_theta\":100000," \
    "\"rope_scaling\":null,\"rope_interleaved\":false,\"tie_word_embeddings\":true,\"attention_bias\":"      \
    "false}"

static int parse(struct model_config *c, const char *json)
{
    return model_config_parse(c, json, strlen(json), "config.json");
}

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

START_TEST(smollm2_is_read_as_published)
{
    struct model_config c = {0};
    ck_assert_msg(parse(&c, SMOLLM2) == 0, "%s", err_text());
    ck_assert_str_eq(c.architecture, "LlamaForCausalLM");
    ck_assert_int_eq(c.vocab, 49152);
    ck_assert_int_eq(c.hidden, 576);
    ck_assert_int_eq(c.ffn, 1536);
    ck_assert_int_eq(c.layers, 30);
    ck_assert_int_eq(c.heads, 9);
    ck_assert_int_eq(c.kv_heads, 3);
    ck_assert_int_eq(c.head_dim, 64);
    ck_assert_int_eq(c.max_positions, 8192);
    ck_assert_int_eq(c.tied, 1);
    ck_assert_int_eq(c.rope_llama3, 0);
    ck_assert_float_eq(c.rope_theta, 100000.0f);
    ck_assert_float_eq(c.rms_eps, 1e-5f);
    ck_assert_uint_eq(model_config_params(&c), 134515008);
}
END_TEST

START_TEST(what_a_file_leaves_out_is_what_transformers_takes)
{
    struct model_config c = {0};
    ck_assert_msg(
        parse(&c, "{\"model_type\":\"llama\",\"vocab_size\":32,\"hidden_size\":64,\"intermediate_size\":32,"
                  "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"head_dim\":null}") == 0,
        "%s", err_text());
    ck_assert_str_eq(c.architecture, "LlamaForCausalLM");
    ck_assert_int_eq(c.kv_heads, 4);
    ck_assert_int_eq(c.head_dim, 16);
    ck_assert_int_eq(c.max_positions, 2048);
    ck_assert_int_eq(c.tied, 0);
    ck_assert_float_eq(c.rope_theta, 10000.0f);
    ck_assert_float_eq(c.rms_eps, 1e-6f);
}
END_TEST

START_TEST(head_size_may_differ_from_hidden_over_heads)
{
    struct model_config c = {0};
    ck_assert_int_eq(parse(&c, "{" LLAMA_8B ",\"head_dim\":64}"), 0);
    ck_assert_int_eq(c.head_dim, 64);
}
END_TEST

/* Nine digits are given, so half a unit of the ninth, and the rounding to float: 1e-8 + 2^-24 relative. */
static void expect_freq(const float *f, int j, double value)
{
    ck_assert_msg(fabs(f[j] - value) <= (1e-8 + 0x1p-24) * value, "inv_freq[%d] is %.10g, expected %.10g", j,
                  f[j], value);
}

START_TEST(unscaled_frequencies_match_the_check_values)
{
    struct model_config c = {0};
    float f[64];
    ck_assert_int_eq(parse(&c, "{" LLAMA_8B "}"), 0);
    model_config_inv_freq(&c, f);
    ck_assert_float_eq(f[0], 1.0f);
    expect_freq(f, 1, 0.814617234);
    expect_freq(f, 31, 0.0017360467);
    expect_freq(f, 32, 0.00141421356);
    expect_freq(f, 63, 2.45514079e-06);
}
END_TEST

START_TEST(llama3_frequencies_match_the_check_values)
{
    struct model_config c = {0}, plain = {0};
    float f[64], p[64];
    ck_assert_int_eq(parse(&c, "{" LLAMA_8B ",\"rope_scaling\":{\"rope_type\":\"llama3\"," BANDS "}}"), 0);
    ck_assert_int_eq(parse(&plain, "{" LLAMA_8B "}"), 0);
    model_config_inv_freq(&c, f);
    model_config_inv_freq(&plain, p);
    for (int j = 0; j <= 28; j++)
        ck_assert_float_eq(f[j], p[j]);
    expect_freq(f, 28, 0.00321144599);
    expect_freq(f, 29, 0.00216657076);
    expect_freq(f, 30, 0.00137189357);
    expect_freq(f, 32, 0.000524846161);
    for (int j = 35; j < 64; j++)
        ck_assert_float_eq(f[j], p[j] / 8);
    expect_freq(f, 35, 9.55621235e-05);
    expect_freq(f, 63, 3.06892599e-07);
}
END_TEST

START_TEST(a_band_of_no_width_divides_nothing_by_zero)
{
    struct model_config c = {0};
    float f[64];
    ck_assert_int_eq(parse(&c, "{" LLAMA_8B ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":16,"
                               "\"low_freq_factor\":1,\"high_freq_factor\":1,"
                               "\"original_max_position_embeddings\":8192}}"),
                     0);
    model_config_inv_freq(&c, f);
    expect_freq(f, 34, 0.000938473870); /* 500000^(-68/128): the last that stays */
    expect_freq(f, 35, 4.77810618e-05);
    expect_freq(f, 63, 1.53446299e-07);
}
END_TEST

START_TEST(rope_is_found_in_every_place_transformers_wrote_it)
{
    static const struct {
        const char *rest;
        int llama3;
        float theta;
    } places[] = {
        {",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7.0}", 0, 7},
        {",\"rope_scaling\":{\"rope_theta\":7.0}", 0, 7},
        {",\"rope_scaling\":{\"type\":\"default\"}", 0, 500000},
        {",\"rope_scaling\":{\"type\":\"llama3\"," BANDS "}", 1, 500000},
        {",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":9.0," BANDS "},\"rope_scaling\":null",
         1, 9},
        {",\"rope_parameters\":null,\"rope_scaling\":{\"rope_type\":\"llama3\"," BANDS "}", 1, 500000},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char json[1024];
        struct model_config c = {0};
        snprintf(json, sizeof json, "{" LLAMA_8B "%s}", places[i].rest);
        ck_assert_msg(parse(&c, json) == 0, "%s", err_text());
        ck_assert_int_eq(c.rope_llama3, places[i].llama3);
        ck_assert_float_eq(c.rope_theta, places[i].theta);
        if (c.rope_llama3)
            ck_assert_float_eq(c.rope_original, 8192.0f);
    }
}
END_TEST

/* A later member of an object cannot override an earlier one (duplicates are refused), so each case names the
 * key it replaces in a small but complete file. */
static const struct {
    const char *key, *value;
    int code;
    const char *sentence;
} bad[] = {
    {"vocab_size", NULL, ERR_FORMAT, "'vocab_size': expected an integer, found nothing"},
    {"hidden_size", "\"64\"", ERR_FORMAT, "'hidden_size': expected an integer, found a string"},
    {"hidden_size", "0", ERR_FORMAT, "'hidden_size': expected an integer from 1 to 1048576, found 0"},
    {"intermediate_size", "-1", ERR_FORMAT, "'intermediate_size': expected an integer from 1"},
    {"intermediate_size", "40", ERR_LIMIT,
     "'intermediate_size' 40 is not computed; this program computes multiples of 16"},
    {"num_hidden_layers", "1e3", ERR_FORMAT, "'num_hidden_layers': expected an integer, found a real number"},
    {"num_hidden_layers", "9223372036854775807", ERR_FORMAT,
     "'num_hidden_layers': expected an integer from 1 to"},
    {"num_attention_heads", "5", ERR_FORMAT,
     "'num_attention_heads': expected a divisor of 'hidden_size' 64, found 5"},
    {"num_attention_heads", "8", ERR_LIMIT,
     "a head size of 8 is not computed; this program computes multiples of 16"},
    {"num_key_value_heads", "3", ERR_FORMAT,
     "'num_key_value_heads': expected a divisor of 'num_attention_heads' 4, found 3"},
    {"head_dim", "24", ERR_LIMIT, "a head size of 24 is not computed"},
    {"max_position_embeddings", "0", ERR_FORMAT, "'max_position_embeddings': expected an integer from 1"},
    {"rms_norm_eps", "0", ERR_FORMAT, "'rms_norm_eps': expected a number from 1e-12 to 1, found 0"},
    {"rope_theta", "-3", ERR_FORMAT, "'rope_theta': expected a number from 1 to 1e+12, found -3"},
    {"rope_theta", "\"x\"", ERR_FORMAT, "'rope_theta': expected a number, found a string"},
    {"tie_word_embeddings", "1", ERR_FORMAT,
     "'tie_word_embeddings': expected true or false, found an integer"},
    {"architectures", "[\"MistralForCausalLM\"]", ERR_LIMIT,
     "architecture 'MistralForCausalLM' is not computed; this program computes LlamaForCausalLM"},
    {"architectures", "[]", ERR_FORMAT, "'architectures': expected an array of strings, found nothing"},
    {"architectures", "\"LlamaForCausalLM\"", ERR_FORMAT,
     "'architectures': expected an array of strings, found a string"},
    {"model_type", "\"qwen3\"", ERR_LIMIT,
     "'model_type' 'qwen3' is not computed; this program computes llama"},
    {"hidden_act", "\"gelu\"", ERR_LIMIT, "'hidden_act' 'gelu' is not computed; this program computes silu"},
    {"attention_bias", "true", ERR_LIMIT, "'attention_bias' true is not computed"},
    {"mlp_bias", "true", ERR_LIMIT, "'mlp_bias' true is not computed"},
    {"partial_rotary_factor", "0.5", ERR_LIMIT, "'partial_rotary_factor' 0.5 is not computed"},
    {"quantization_config", "{\"quant_method\":\"fp8\"}", ERR_LIMIT, "'quant_method' 'fp8' is not computed"},
    {"rope_scaling", "[]", ERR_FORMAT, "'rope_scaling': expected an object or null, found an array"},
    {"rope_scaling", "{\"type\":\"yarn\",\"factor\":2}", ERR_LIMIT,
     "rope type 'yarn' is not computed; this program computes default and llama3"},
    {"rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8}", ERR_FORMAT,
     "'low_freq_factor': expected a number, found nothing"},
    {"rope_scaling",
     "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1,"
     "\"original_max_position_embeddings\":64}",
     ERR_FORMAT, "'low_freq_factor': expected at most 'high_freq_factor' 1, found 4"},
    {"rope_parameters", "{\"partial_rotary_factor\":0.25}", ERR_LIMIT,
     "'partial_rotary_factor' 0.25 is not computed"},
};

START_TEST(what_is_not_computed_is_refused_by_name)
{
    static const char *const base[][2] = {{"architectures", "[\"LlamaForCausalLM\"]"},
                                          {"model_type", "\"llama\""},
                                          {"vocab_size", "97"},
                                          {"hidden_size", "64"},
                                          {"intermediate_size", "96"},
                                          {"num_hidden_layers", "2"},
                                          {"num_attention_heads", "4"}};
    char json[1024] = "{", what[64];
    size_t at = 1;
    for (size_t i = 0; i < sizeof base / sizeof *base; i++)
        if (strcmp(base[i][0], bad[_i].key) != 0)
            at += (size_t)snprintf(json + at, sizeof json - at, "\"%s\":%s,", base[i][0], base[i][1]);
    if (bad[_i].value)
        at += (size_t)snprintf(json + at, sizeof json - at, "\"%s\":%s,", bad[_i].key, bad[_i].value);
    json[at - 1] = '}';
    snprintf(what, sizeof what, "case %d/config.json", _i);
    struct model_config c = {.vocab = 77};
    expect_error(model_config_parse(&c, json, strlen(json), what), bad[_i].code, bad[_i].sentence);
    expect_error(bad[_i].code, bad[_i].code, what);
    ck_assert_int_eq(c.vocab, 77); /* written only on success */
}
END_TEST

START_TEST(a_directory_is_read_through_its_config_json)
{
    char dir[] = "/tmp/test_model_config_XXXXXX", path[64];
    struct model_config c = {0};
    ck_assert_ptr_nonnull(mkdtemp(dir));
    expect_error(model_config_read(&c, dir), ERR_IO, "/config.json: cannot open: No such file");
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    fputs(SMOLLM2, f);
    fclose(f);
    ck_assert_int_eq(model_config_read(&c, dir), 0);
    ck_assert_int_eq(c.hidden, 576);
    unlink(path);
    rmdir(dir);
}
END_TEST

/* Parameter counts as published with the weights. */
START_TEST(published_shapes_are_found_by_name)
{
    static const struct {
        const char *name;
        unsigned long params;
    } known[] = {{"smollm2-135m", 134515008},
                 {"llama-3.2-1b", 1235814400},
                 {"llama-3.1-8b", 8030261248},
                 {"llama-3.3-70b", 70553706496}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        struct model_config c = {0};
        ck_assert_msg(model_config_named(&c, known[i].name) == 0, "%s", err_text());
        ck_assert_str_eq(c.architecture, "LlamaForCausalLM");
        ck_assert_uint_eq(model_config_params(&c), known[i].params);
    }
}
END_TEST

START_TEST(a_named_shape_is_what_its_file_says)
{
    struct model_config file, named;
    memset(&file, 0, sizeof file);
    memset(&named, 0, sizeof named);
    ck_assert_int_eq(parse(&file, SMOLLM2), 0);
    ck_assert_int_eq(model_config_named(&named, "smollm2-135m"), 0);
    ck_assert_mem_eq(&file, &named, sizeof file);
    ck_assert_int_eq(parse(&file, "{" LLAMA_8B ",\"rope_scaling\":{\"rope_type\":\"llama3\"," BANDS "}}"), 0);
    ck_assert_int_eq(model_config_named(&named, "llama-3.1-8b"), 0);
    ck_assert_mem_eq(&file, &named, sizeof file);
    ck_assert_int_eq(model_config_named(&named, "llama-3.2-1b"), 0);
    ck_assert_float_eq(named.rope_factor, 32);
    ck_assert_int_eq(named.tied, 1);
}
END_TEST

START_TEST(an_unknown_shape_gets_the_list)
{
    struct model_config c = {.vocab = 77};
    expect_error(model_config_named(&c, "llama-9"), ERR_CONFIG,
                 "'llama-9': expected one of smollm2-135m, llama-3.2-1b, llama-3.1-8b, llama-3.3-70b");
    ck_assert_int_eq(c.vocab, 77);
}
END_TEST

START_TEST(an_array_is_not_a_config)
{
    struct model_config c = {0};
    expect_error(parse(&c, "[]"), ERR_FORMAT, "config.json: expected an object, found an array");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model_config");
    TCase *reads = tcase_create("reads"), *rope = tcase_create("rope"), *refuses = tcase_create("refuses");
    tcase_add_test(reads, smollm2_is_read_as_published);
    tcase_add_test(reads, what_a_file_leaves_out_is_what_transformers_takes);
    tcase_add_test(reads, head_size_may_differ_from_hidden_over_heads);
    tcase_add_test(reads, published_shapes_are_found_by_name);
    tcase_add_test(reads, a_named_shape_is_what_its_file_says);
    tcase_add_test(refuses, an_unknown_shape_gets_the_list);
    tcase_add_test(reads, a_directory_is_read_through_its_config_json);
    tcase_add_test(rope, unscaled_frequencies_match_the_check_values);
    tcase_add_test(rope, llama3_frequencies_match_the_check_values);
    tcase_add_test(rope, a_band_of_no_width_divides_nothing_by_zero);
    tcase_add_test(rope, rope_is_found_in_every_place_transformers_wrote_it);
    tcase_add_loop_test(refuses, what_is_not_computed_is_refused_by_name, 0, sizeof bad / sizeof *bad);
    tcase_add_test(refuses, an_array_is_not_a_config);
    suite_add_tcase(s, reads);
    suite_add_tcase(s, rope);
    suite_add_tcase(s, refuses);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
