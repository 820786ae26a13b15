/* replay: runs a fuzz target over committed inputs, so that what a fuzzer once found stays an ordinary test.
 * Arguments are directories; every regular file in them is one input. */
#include <dirent.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int replay_file(const char *path, size_t n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(n + 1);
    int rc = !f || !data || fread(data, 1, n, f) != n;
    if (rc)
        fprintf(stderr, "replay: cannot read %s\n", path);
    else
        LLVMFuzzerTestOneInput(data, n);
    free(data);
    if (f)
        fclose(f);
    return rc;
}

static int replay_directory(const char *dir)
{
    char path[PATH_MAX];
    struct stat st;
    int files = 0, rc = 0;
    DIR *d = opendir(dir);
    if (!d) {
        fprintf(stderr, "replay: cannot open directory %s\n", dir);
        return 1;
    }
    for (struct dirent *e; (e = readdir(d)) && !rc;) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (stat(path, &st) || !S_ISREG(st.st_mode))
            continue;
        rc = replay_file(path, (size_t)st.st_size);
        files++;
    }
    closedir(d);
    printf("replay: %d inputs of %s\n", files, dir);
    return rc || files == 0;
}

int main(int argc, char **argv)
{
    int rc = argc < 2;
    for (int i = 1; i < argc && !rc; i++)
        rc = replay_directory(argv[i]);
    return rc;
}
