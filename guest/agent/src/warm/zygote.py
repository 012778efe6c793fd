# Python's fork server. The agent starts `python3 MAIN` with this file as `usercustomize`, the last thing that python
# imports before it opens its program, and here it stays. A child leaves this file by the ImportError of a customization
# that isn't there, and goes on as python itself does: it opens its program, runs it as __main__ with nothing beneath it,
# and ends as any python ends.
#
#   agent -> fd 3    "slot ctl out err ends main\n": park a child; four descriptors of the agent's, and its program's file
#   agent <- fd 4    "slot pid\n": it is parked, reading ctl
#   agent -> ctl     8 digits, the length of what follows; fields, each ended by a zero byte:
#                    merge, cwd, main, count of arguments, the arguments, then NAME=value
#   agent <- ends    one byte, the exit code: all that can be seen of the program has been done (see `last`)
#
# Only what a fresh python has loaded by now is used, so that a child has the modules of a fresh python and no others.
import sys


def park():
    import _thread
    import _weakref
    import atexit
    import gc
    import posix
    from _frozen_importlib_external import ExtensionFileLoader

    orders, reports = 3, 4
    warm, home, marker, agent = sys.path[0], sys.path[1], sys.argv[0], posix.getppid()
    os, site = sys.modules["os"], sys.modules["site"]
    names_of_main = sys.modules["__main__"].__dict__
    environment = os.environ._data

    def read_all(fd, size):
        parts = []
        while size:
            part = posix.read(fd, min(size, 1 << 20))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def open_read(path):
        return posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)

    def utf32(text):
        return b"".join([ord(letter).to_bytes(4, "little") for letter in text])

    def find_names():
        """Where the interpreter keeps its program's name in its memory: each child is given another one."""
        fd = open_read("/proc/self/maps")
        lines = read_all(fd, 1 << 20).split(b"\n")
        posix.close(fd)
        fd = open_read("/proc/self/mem")
        needle, found = utf32(marker) + bytes(4), set()
        for line in lines:
            if not line.endswith(b"[heap]"):
                continue
            start, end = [int(part, 16) for part in line.split()[0].split(b"-")]
            for piece in range(start, end, 32768):
                data = posix.pread(fd, 32768 + len(needle), piece)
                at = data.find(needle)
                while at >= 0:
                    if at % 8 == 0:
                        found.add(piece + at)
                    at = data.find(needle, at + 4)
        posix.close(fd)
        return sorted(found)

    # What an interpreter reads while it starts. If one of these has changed since, a fresh one is started instead.
    customizations = ("sitecustomize", "sitecustomize.py", "usercustomize", "usercustomize.py")
    watched = [sys.executable, site.getusersitepackages(), *site.getsitepackages()]
    watched += [home + "/" + name for name in customizations]
    stat, access = posix.stat, posix.access
    absent = [path for path in watched if not access(path, posix.F_OK)]
    present = [(path, stat(path)) for path in watched if path not in absent]
    present = [(path, found.st_ino, found.st_mtime_ns) for path, found in present]
    names = find_names()

    def is_as_it_was():
        for path in absent:
            if access(path, 0):
                return False
        for path, inode, changed in present:
            found = stat(path)
            if found.st_mtime_ns != changed or found.st_ino != inode:
                return False
        return True

    # The end of a program. The interpreter's own takes most of a small program's time, though nothing that it still does
    # can be seen. So, where that is certain, a child tells its exit code and leaves.
    own = {"pid": 0, "blocks": 0}
    streams = sys.stdout, sys.stderr
    hooks = sys.excepthook, sys.unraisablehook
    get_frame, get_objects, blocks = sys._getframe, gc.get_objects, sys.getallocatedblocks
    mro_of, names_of, flags_of = [type.__dict__[name].__get__ for name in ("__mro__", "__dict__", "__flags__")]
    callback_of = _weakref.ref.__dict__["__callback__"].__get__
    function, builtin = type(park), type(len)
    # Collected by reference counts alone, a type's instances are not among the objects that the collector knows.
    TRACKED = 1 << 14
    # More than this takes longer to look at than to take apart.
    BLOCKS_MAX = 40000
    # Extensions of the standard library that hold nothing open and call nobody.
    HARMLESS = {"_bz2", "_contextvars", "_crypt", "_decimal", "_hashlib", "_json", "_lzma", "_queue", "_typing", "_uuid"}
    HARMLESS |= {"_zoneinfo", "resource", "termios"}

    def has_del(mro):
        for base in mro:
            if "__del__" in names_of(base):
                return True
        return False

    def is_of(mro, kind):
        for base in mro:
            if base is kind:
                return True
        return False

    def is_quiet(thing, verdict):
        """Whether an object of a type that isn't plain goes without being heard."""
        if verdict == "type":
            return not has_del(mro_of(thing)) or flags_of(thing) & TRACKED
        if verdict == "reference":
            call = callback_of(thing)
            kind = type(call)
            if call is None or kind is builtin:
                return True
            return kind is function and call.__globals__.get("__name__") in ("weakref", "_weakrefset")
        return verdict == "extension" and thing.name in HARMLESS

    def verdict_on(kind):
        mro = mro_of(kind)
        if has_del(mro) or kind is _weakref.ProxyType or kind is _weakref.CallableProxyType:
            return "loud"
        if is_of(mro, type):
            return "type"
        if is_of(mro, _weakref.ref):
            return "reference"
        return "extension" if kind is ExtensionFileLoader else "plain"

    def ended_by_itself():
        """Whether main has run to its end. After that, and not after SystemExit, python takes these two names away."""
        if "__file__" in names_of_main or "__cached__" in names_of_main:
            return False
        for name in content:
            if name not in names_of_main:
                return False
        state = sys.__dict__
        return "last_type" not in state and "last_value" not in state and "last_traceback" not in state

    def nothing_is_left_to_see():
        if sys.modules["__main__"].__dict__ is not names_of_main or "gc" in sys.modules:
            return False
        if sys.stdout is not streams[0] or sys.stderr is not streams[1]:
            return False
        if sys.excepthook is not hooks[0] or sys.unraisablehook is not hooks[1]:
            return False
        if _thread._count() or blocks() > own["blocks"] + BLOCKS_MAX:
            return False
        verdicts = {}
        for thing in get_objects():
            kind = type(thing)
            verdict = verdicts.get(id(kind))
            if verdict is None:
                verdict = verdicts[id(kind)] = verdict_on(kind)
            if verdict != "plain" and not is_quiet(thing, verdict):
                return False
        for stream in streams:
            stream.flush()
        return True

    def last():
        """Registered before all others, it runs after them: threads have been joined by then."""
        if posix.getpid() != own["pid"] or not ended_by_itself():
            return
        try:
            # Called by nobody: not by a program that runs its callbacks itself.
            if get_frame().f_back is not None or not nothing_is_left_to_see():
                return
        except BaseException:
            # What failed fails again, and is told then.
            return
        try:
            fd = posix.open(own["ends"], posix.O_WRONLY)
            # What the program left open is closed when its end is known.
            posix.closerange(3, fd)
            posix.closerange(fd + 1, 1 << 20)
            posix.write(fd, b"\0")
        finally:
            posix._exit(0)

    def exercise():
        """What each child does before it is used: a small program goes the way that its own will go."""
        space = {"__name__": "exercise", "__builtins__": __builtins__}
        exec(compile("class C:\n    def f(self, x):\n        return f'{x}'\nC().f(1)\n", "exercise", "exec"), space)
        is_as_it_was()
        nothing_is_left_to_see()

    def child(slot, ctl, out, err, ends, main):
        posix.setpgid(0, 0)
        for path, cgroup in (("/proc/self/oom_score_adj", b"0"), ("/sys/fs/cgroup/box/cgroup.procs", b"0")):
            try:
                fd = posix.open(path, posix.O_WRONLY)
                posix.write(fd, cgroup)
                posix.close(fd)
            except OSError:
                pass
        theirs = "/proc/%d/fd/" % agent
        control = open_read(theirs + ctl)
        for name, to in ((out, 1), (err, 2)):
            fd = posix.open(theirs + name, posix.O_WRONLY)
            posix.dup2(fd, to)
            posix.close(fd)
        own["ends"] = theirs + ends
        can_park = names and len(main) == len(marker)
        if can_park:
            new, fd = utf32(main), posix.open("/proc/self/mem", posix.O_WRONLY)
            for at in names:
                posix.pwrite(fd, new, at)
            posix.close(fd)
        # What python would find out of a program that is a file.
        sys.path_importer_cache[main] = None
        exercise()
        own["pid"], own["blocks"] = posix.getpid(), blocks()
        posix.write(reports, b"%s %d\n" % (slot.encode(), own["pid"]))
        posix.close(orders)
        posix.close(reports)
        order = posix.read(control, 65536)
        if len(order) < 8:
            posix._exit(0)
        size = int(order[:8]) + 8
        if len(order) < size:
            order += read_all(control, size - len(order))
        posix.close(control)
        become(order[8:].split(b"\0"), can_park)

    def become(fields, can_park):
        count = 4 + int(fields[3])
        main, arguments = fields[2].decode(), fields[4:count]
        given = dict([pair.split(b"=", 1) for pair in fields[count:-1]])
        if fields[0] == b"1":
            posix.dup2(1, 2)
        posix.chdir(fields[1])
        if not can_park or not is_as_it_was():
            posix.execve(sys.executable, [sys.executable, main, *arguments], given)
        if given != environment:
            for name in environment:
                posix.unsetenv(name)
            environment.clear()
            posix.environ.clear()
            for name, value in given.items():
                posix.putenv(name, value)
                environment[name] = posix.environ[name] = value
        sys.argv[:] = [main, *map(os.fsdecode, arguments)]
        sys.orig_argv[1:] = sys.argv

    # As python's own start would have it.
    sys.path.remove(warm)
    sys.path_importer_cache.pop(warm, None)
    environment[b"PYTHONPATH"] = posix.environ[b"PYTHONPATH"] = home.encode()
    posix.putenv(b"PYTHONPATH", home.encode())
    atexit.register(last)
    # What lives now outlives each child: no collection has to look at it, and what a program leaves is all that is not
    # among it. But for the main module's names, which go with their program: a collection forgets a dictionary that is
    # empty, and it is looked at again once something is put into it.
    content = dict(names_of_main)
    names_of_main.clear()
    gc.collect()
    gc.freeze()
    names_of_main.update(content)
    del sys.modules["gc"], sys.modules["atexit"]
    rest = b""
    while True:
        part = posix.read(orders, 4096)
        if not part:
            posix._exit(0)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            first = posix.fork()
            if first:
                posix.waitpid(first, 0)
                continue
            # The agent is the parent of whom its parent leaves.
            if posix.fork():
                posix._exit(0)
            return child(*line.decode().split(" ", 5))


park()
raise ImportError("as if this file were not here", name="usercustomize")
