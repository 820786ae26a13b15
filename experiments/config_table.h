/* config_table: what options there are. The rows of the table and the options that draft strategies declare look the same from here on. */
#ifndef EXPERIMENTS_CONFIG_TABLE_H
#define EXPERIMENTS_CONFIG_TABLE_H
#include "experiments/config.h"

enum { CONFIG_KEY_MAX = 96 };

enum config_type {
    CONFIG_INT,    /* a whole number in [lo, hi] */
    CONFIG_REAL,   /* a number in [lo, hi], or (lo, hi] */
    CONFIG_BOOL,   /* true or false */
    CONFIG_TEXT,   /* any text */
    CONFIG_CHOICE, /* one of choice(0), choice(1), ... */
    CONFIG_LIST    /* any number of non-empty texts */
};
/* The member at `offset` in struct config. A draft's options are all doubles: a choice is the word's index. */
enum config_store { CONFIG_AS_INT, CONFIG_AS_LONG, CONFIG_AS_DOUBLE, CONFIG_AS_STRING, CONFIG_AS_LIST };

struct config_option {
    char key[CONFIG_KEY_MAX];
    enum config_type type;
    enum config_store store;
    size_t offset;
    char def[32]; /* as in a file; "" for an empty list */
    double lo, hi;
    int lo_open;  /* 1: lo itself is outside */
    const char *(*choice)(int i);     /* NULL past the end; for CONFIG_CHOICE of a table row */
    const char *const *words;         /* the same for CONFIG_CHOICE of a draft's option */
    const char *help;
};

/* The i-th option; 0 past the end. Sections stand together, `draft` last. */
int  config_option_at(int i, struct config_option *out);
int  config_option_find(const char *key, struct config_option *out); /* 0: unknown */
/* The i-th word of a choice, NULL past the end. */
const char *config_option_word(const struct config_option *o, int i);
/* 1 when some option's key starts with "key.". */
int  config_is_section(const char *key);
/* "a whole number in [1, 64]", "none, ngram or oracle": into buf. */
void config_option_expected(const struct config_option *o, char *buf, size_t n);
/* "; did you mean 'draft.strategy'?", or "" when nothing is near: into buf. */
void config_suggest(const char *key, char *buf, size_t n);
#endif
