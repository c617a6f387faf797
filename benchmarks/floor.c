/* The fewest system calls that copy the contents, modes and times of a tree's files, on some threads.
 *
 *     gcc -O2 -pthread -o floor floor.c && ./floor SOURCE COPY THREADS
 *
 * What a copier does beyond it (owners, attributes, links, times of directories, a second look at each source) costs more.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define LARGE (1 << 20) /* bytes: larger files are shared out one by one, smaller ones go with their directory */

struct task {
    struct task *below;
    char *source, *copy; /* paths */
    int is_directory;
};

static struct task *stack;
static int undone; /* tasks that are on the stack or under way */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static char *joined(const char *path, const char *name)
{
    char *whole = malloc(strlen(path) + strlen(name) + 2);
    return strcat(strcat(strcpy(whole, path), *name ? "/" : ""), name);
}

static void push(const char *source, const char *copy, const char *name, int is_directory)
{
    struct task *one = malloc(sizeof *one);
    *one = (struct task){NULL, joined(source, name), joined(copy, name), is_directory};
    pthread_mutex_lock(&lock);
    one->below = stack;
    stack = one;
    undone++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

/* Returns 0 for a file that is too large to be copied on the way. */
static int copy_file(int source_dir, int copy_dir, const char *source_name, const char *copy_name, off_t most)
{
    struct stat state;
    int source = openat(source_dir, source_name, O_RDONLY | O_NOFOLLOW);
    if (source < 0 || fstat(source, &state))
        err(1, "%s", source_name);
    if (state.st_size > most)
        return close(source), 0;
    int copy = openat(copy_dir, copy_name, O_WRONLY | O_CREAT | O_EXCL, state.st_mode & 0777);
    if (copy < 0)
        err(1, "%s", copy_name);
    for (off_t done = 0; done < state.st_size;) {
        ssize_t some = copy_file_range(source, NULL, copy, NULL, state.st_size - done, 0);
        if (some < 0 && errno == EXDEV) /* another file system */
            some = sendfile(copy, source, NULL, state.st_size - done);
        if (some <= 0)
            err(1, "%s", source_name);
        done += some;
    }
    struct timespec times[] = {state.st_atim, state.st_mtim};
    if (futimens(copy, times) || close(copy))
        err(1, "%s", copy_name);
    return close(source), 1;
}

static void copy_directory(const struct task *one)
{
    int source = open(one->source, O_RDONLY | O_DIRECTORY);
    if (mkdir(one->copy, 0755))
        err(1, "%s", one->copy);
    int copy = open(one->copy, O_RDONLY | O_DIRECTORY);
    DIR *listing = fdopendir(source);
    if (!listing || copy < 0)
        err(1, "%s", one->source);
    for (struct dirent *entry; (entry = readdir(listing));) {
        const char *name = entry->d_name;
        if (entry->d_type == DT_DIR && strcmp(name, ".") && strcmp(name, ".."))
            push(one->source, one->copy, name, 1);
        else if (entry->d_type == DT_REG && !copy_file(source, copy, name, name, LARGE))
            push(one->source, one->copy, name, 0);
    }
    closedir(listing);
    close(copy);
}

static void *work(void *nothing)
{
    pthread_mutex_lock(&lock);
    while (undone) {
        struct task *one = stack;
        if (!one) {
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        stack = one->below;
        pthread_mutex_unlock(&lock);
        if (one->is_directory)
            copy_directory(one);
        else
            copy_file(AT_FDCWD, AT_FDCWD, one->source, one->copy, (off_t)1 << 62);
        free(one->source);
        free(one->copy);
        free(one);
        pthread_mutex_lock(&lock);
        if (!--undone)
            pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return nothing;
}

int main(int count, char **words)
{
    int threads = count == 4 ? atoi(words[3]) : 0;
    if (threads < 1)
        errx(2, "floor SOURCE COPY THREADS");
    umask(0);
    push(words[1], words[2], "", 1);
    pthread_t all[threads];
    for (int number = 0; number < threads; number++)
        pthread_create(&all[number], NULL, work, NULL);
    for (int number = 0; number < threads; number++)
        pthread_join(all[number], NULL);
    return 0;
}
