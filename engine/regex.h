/* regex: the regular expressions of a tokenizer.json, run by PCRE2. The file's patterns are written for
 * Oniguruma with Unicode 16; what the two engines read differently is spelled out or refused by name:
 *   \s \d \p{..}  spelled out, so that both see the same characters whatever Unicode version PCRE2 was built with
 *   accepted      literals, escaped punctuation, \r \n \t \f \v \uHHHH, . | ( ) (?: (?= (?! (?>, (?i: around ASCII
 *                 letters, [..] [^..], ? * + {n} {n,} {n,m}, lazy and possessive ? * +, \S \P{..} outside classes
 *   refused       all else: \w \b \h, backreferences, look-behind, ^ $, classes in classes, && */
#ifndef ENGINE_REGEX_H
#define ENGINE_REGEX_H
#include <stddef.h>

struct regex;         /* compiled; immutable, any number of threads may share one */
struct regex_scratch; /* what one thread needs to search */

/* `what` names the pattern in messages. ERR_LIMIT: not supported; ERR_FORMAT: not a regular expression. */
int  regex_open(struct regex **out, const char *pattern, size_t n, const char *what);
void regex_close(struct regex *re); /* accepts NULL */
int  regex_scratch_new(struct regex_scratch **out);
void regex_scratch_free(struct regex_scratch *s); /* accepts NULL */
/* Leftmost match in text [n bytes of valid UTF-8] at or after `from`, a character's border: *found, and if so
 * [*start, *end). ERR_LIMIT when the search would take unreasonable time or memory. */
int  regex_find(const struct regex *re, struct regex_scratch *s, const char *text, size_t n, size_t from, int *found,
                size_t *start, size_t *end);

/* Characters that got their category in Unicode 15 or 16. */
struct regex_range {
    unsigned lo, hi;
    char category[3];
};
extern const struct regex_range regex_recent[];
extern const int regex_n_recent;
#endif
