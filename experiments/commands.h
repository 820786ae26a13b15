/* commands: the verbs of the program; main.c looks the word up and calls. Each parses its own options with argp. */
#ifndef EXPERIMENTS_COMMANDS_H
#define EXPERIMENTS_COMMANDS_H

struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv); /* argv[0] is "specbed NAME"; returns 0 or an enum err, with its message set */
};
extern const struct command commands[]; /* ends with name NULL */

int command_run(int argc, char **argv);      /* run.c */
int command_analyze(int argc, char **argv);  /* analyze.c */
int command_bench(int argc, char **argv);    /* bench.c */
int command_list(int argc, char **argv);     /* list.c */
int command_tokenize(int argc, char **argv); /* tokenize.c */
#endif
