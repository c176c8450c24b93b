package cache_test

const crashDirEnv = "XYLEM_CACHE_CRASH_DIR"

func crashChild(dir string) {}
