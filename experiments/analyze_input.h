/* analyze_input: the files that a command line means, and what is in them as one data set. */
#ifndef EXPERIMENTS_ANALYZE_INPUT_H
#define EXPERIMENTS_ANALYZE_INPUT_H
#include "experiments/trace.h"

struct analyze_input {
    char **path; /* owned [n], owned strings, each once, in the order of the command line; within a pattern or folder by name */
    int n;
};

/* args [n]: files; folders, which mean the *.h5 in them; patterns with *, ? or [ that the shell left alone. ERR_IO for a folder or a pattern
 * without a result; ERR_MEMORY. */
int  analyze_input_init(struct analyze_input *in, const char *const *args, int n);
void analyze_input_deinit(struct analyze_input *in); /* a zeroed struct is fine */
/* All of them, joined (join.h); parts as trace_read. */
int  analyze_input_read(const struct analyze_input *in, unsigned parts, struct trace *out);
/* Changes when a file does: a hash of sizes, times and identities. */
uint64_t analyze_input_state(const struct analyze_input *in);
#endif
