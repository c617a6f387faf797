/* A store that takes a millisecond a request: a file system that shows a directory, to be read only.
 *
 *     gcc -O2 -o store store.c $(pkg-config --cflags --libs fuse3) && ./store DIRECTORY MOUNTPOINT
 *
 * What the kernel knows of a file it does not ask again for a second, as the client of a network file system would not.
 * It ends when it is unmounted: fusermount3 -u MOUNTPOINT.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 31
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define REQUEST 1000000 /* nanoseconds */
#define LONGEST 4160    /* bytes of a path, with the way to the top */

static int top;

static void request(void)
{
    struct timespec rest = {0, REQUEST};
    while (nanosleep(&rest, &rest))
        ;
}

static int said(ssize_t result)
{
    return result < 0 ? -errno : (int)result;
}

static const char *below(const char *path)
{
    return path[1] ? path + 1 : ".";
}

static int store_getattr(const char *path, struct stat *state, struct fuse_file_info *file)
{
    request();
    return said(file ? fstat(file->fh, state) : fstatat(top, below(path), state, AT_SYMLINK_NOFOLLOW));
}

static int store_readlink(const char *path, char *target, size_t size)
{
    request();
    ssize_t length = readlinkat(top, below(path), target, size - 1);
    if (length >= 0)
        target[length] = 0;
    return length < 0 ? -errno : 0;
}

static int opened(int handle, struct fuse_file_info *file)
{
    file->fh = handle;
    return handle < 0 ? -errno : 0;
}

static int store_open(const char *path, struct fuse_file_info *file)
{
    request();
    return opened(openat(top, below(path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK), file);
}

static int store_opendir(const char *path, struct fuse_file_info *file)
{
    request();
    return opened(openat(top, below(path), O_RDONLY | O_NOFOLLOW | O_DIRECTORY), file);
}

static int store_read(const char *path, char *buffer, size_t size, off_t at, struct fuse_file_info *file)
{
    (void)path;
    request();
    return said(pread(file->fh, buffer, size, at));
}

static int store_flush(const char *path, struct fuse_file_info *file)
{
    (void)path, (void)file;
    request();
    return 0;
}

static int store_release(const char *path, struct fuse_file_info *file) /* nobody waits for it */
{
    (void)path;
    return said(close(file->fh));
}

static int store_readdir(const char *path, void *names, fuse_fill_dir_t fill, off_t from, struct fuse_file_info *file,
                         enum fuse_readdir_flags flags)
{
    (void)path, (void)flags;
    int handle = openat(file->fh, ".", O_RDONLY | O_DIRECTORY);
    DIR *listing = handle < 0 ? NULL : fdopendir(handle);
    if (!listing)
        return -errno;
    seekdir(listing, from);
    struct dirent *entry = readdir(listing);
    if (entry) /* the end comes with the last names */
        request();
    struct stat state;
    for (; entry; entry = readdir(listing))
        if (!fstatat(handle, entry->d_name, &state, AT_SYMLINK_NOFOLLOW)
            && fill(names, entry->d_name, &state, entry->d_off, FUSE_FILL_DIR_PLUS))
            break; /* no room for more */
    return said(closedir(listing));
}

/* The path of a file for the calls that take no handle of a directory. */
static const char *whole(const char *path, char room[LONGEST])
{
    snprintf(room, LONGEST, "/proc/self/fd/%d/%s", top, below(path));
    return room;
}

static int store_listxattr(const char *path, char *list, size_t size)
{
    char room[LONGEST];
    request();
    return said(llistxattr(whole(path, room), list, size));
}

static int store_getxattr(const char *path, const char *name, char *value, size_t size)
{
    char room[LONGEST];
    request();
    return said(lgetxattr(whole(path, room), name, value, size));
}

static void *store_init(struct fuse_conn_info *kernel, struct fuse_config *config)
{
    (void)kernel;
    config->use_ino = 1; /* names of one file show it */
    return NULL;
}

static const struct fuse_operations operations = {
    .init = store_init,
    .getattr = store_getattr,
    .readlink = store_readlink,
    .open = store_open,
    .read = store_read,
    .flush = store_flush,
    .release = store_release,
    .opendir = store_opendir,
    .readdir = store_readdir,
    .releasedir = store_release,
    .listxattr = store_listxattr,
    .getxattr = store_getxattr,
};

int main(int count, char **words)
{
    if (count != 3)
        errx(2, "store DIRECTORY MOUNTPOINT");
    top = open(words[1], O_RDONLY | O_DIRECTORY);
    if (top < 0)
        err(1, "%s", words[1]);
    char *given[] = {words[0], words[2], "-o", "ro,max_threads=128,clone_fd,fsname=store", NULL};
    return fuse_main(4, given, &operations, NULL);
}
