// A disk that takes its time: every sync waits for 1.5 s. Preloaded into a Redis.
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>

int fdatasync(int file) {
    (void)file;
    struct timespec pause = {1, 500000000};
    nanosleep(&pause, 0);
    return 0;
}

int fsync(int file) { return fdatasync(file); }
