/* err: a code for the program, a sentence for the person. The first failure writes the message, callers put
 * what they were doing in front of it, main() prints it once. The text belongs to the calling thread. */
#ifndef ENGINE_ERR_H
#define ENGINE_ERR_H

enum err {
    ERR_NONE = 0,
    ERR_CONFIG, /* usage or configuration: exit code 2 */
    ERR_IO,     /* the operating system said no: file, disk, memory map */
    ERR_FORMAT, /* foreign bytes are not what their format demands */
    ERR_LIMIT,  /* well-formed, but more than this program or model can hold */
    ERR_MEMORY, /* out of host or device memory */
    ERR_DEVICE, /* a backend failed */
    ERR_STOP    /* interrupted by the user; not a fault */
};

/* Start a message (dropping any older one) and return code; context goes in front of the current message. */
int err_set(int code, const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void err_context(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The message: one line a context, indented by depth, ending in [file:line]. "" when there is none. */
const char *err_text(void);
void err_clear(void);

#define FAIL(code, ...) return err_set((code), __FILE__, __LINE__, __VA_ARGS__)
#define TRY(call)                                                                                            \
    do {                                                                                                     \
        int try_rc_ = (call);                                                                                \
        if (try_rc_)                                                                                         \
            return try_rc_;                                                                                  \
    } while (0)
#define TRY_CTX(call, ...)                                                                                   \
    do {                                                                                                     \
        int try_rc_ = (call);                                                                                \
        if (try_rc_) {                                                                                       \
            err_context(__VA_ARGS__);                                                                        \
            return try_rc_;                                                                                  \
        }                                                                                                    \
    } while (0)
/* For functions that hold something: `if (...) { rc = ERR_SET(ERR_IO, "..."); goto out; }` */
#define ERR_SET(code, ...) err_set((code), __FILE__, __LINE__, __VA_ARGS__)
#endif
