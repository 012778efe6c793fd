//! Python programs whose end, output and errors show how they were run.

/// Name and text of each. `sys.argv[1:]` is `a b`, `é` and the empty string; `VARIABLE` is `é=1`.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("hello", "print('Hello World!')"),
    ("empty", ""),
    ("an exception in a function", "def f(x):\n    return 1 / x\n\n\nprint('before')\nf(0)\n"),
    ("a chain of exceptions", "try:\n    {}['k']\nexcept KeyError as error:\n    raise ValueError('é') from error\n"),
    ("an exception group", "raise ExceptionGroup('many', [ValueError(1), TypeError('x')])"),
    ("an exception that can't be told", "class E(Exception):\n    def __str__(self):\n        raise 1\nraise E\n"),
    ("a syntax error", "print('never')\ndef f(:\n    pass\n"),
    ("an indentation error", "if 1:\nprint(1)\n"),
    ("a zero byte", "print(1)\0\n"),
    ("no UTF-8", "# \u{fffd}\nx = '\u{e9}'\nprint(x)\n"),
    ("an encoding that is declared", "# -*- coding: latin-1 -*-\nprint('é')\n"),
    ("sys.exit", "import sys; print('a'); sys.exit()"),
    ("sys.exit with a code", "import sys; sys.exit(3)"),
    ("sys.exit with a large code", "import sys; sys.exit(259)"),
    ("sys.exit with a text", "import sys; sys.exit('why é')"),
    ("sys.exit with None", "raise SystemExit(None)"),
    (
        "sys.exit in a thread",
        "import sys, threading; t = threading.Thread(target=sys.exit, args=(5,)); t.start(); t.join(); print('on')",
    ),
    ("os._exit", "import os\nprint('lost')\nos._exit(7)"),
    ("a signal", "import os, signal\nprint('a', flush=True)\nos.kill(os.getpid(), signal.SIGTERM)\n"),
    ("a fault", "import faulthandler, os, signal, re\nprint('a', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n"),
    ("abort", "import os\nos.abort()"),
    ("an interrupt", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(1)\n"),
    ("SIGPIPE's handling", "import signal; print(signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGINT))"),
    ("signals that are blocked", "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"),
    (
        "threads",
        "import threading\nts = [threading.Thread(target=print, args=(i,)) for i in range(3)]\nfor t in ts: t.start(); t.join()\nprint(threading.current_thread() is threading.main_thread(), threading.active_count(), threading.current_thread().name)\n",
    ),
    (
        "a thread that outlives the end",
        "import threading, time\ndef f():\n    time.sleep(0.2)\n    print('late')\nthreading.Thread(target=f).start()\nprint('end')\n",
    ),
    (
        "a daemon thread at the end",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint('end')\n",
    ),
    (
        "an exception in a thread",
        "import threading\ndef f(): raise ValueError('t')\nt = threading.Thread(target=f, name='one'); t.start(); t.join(); print('on')\n",
    ),
    (
        "atexit",
        "import atexit, sys\natexit.register(print, 'one')\natexit.register(print, 'two')\nprint('end')\nsys.exit(4)\n",
    ),
    ("an exception in atexit", "import atexit\natexit.register(lambda: 1 / 0)\nprint('end')\n"),
    (
        "finalizers at the end",
        "class C:\n    def __del__(self): print('gone', self.n)\na, b = C(), C()\na.n, b.n = 1, 2\nb.me = b\nprint('end')\n",
    ),
    (
        "a file that is never closed",
        "f = open('/tmp/left', 'w'); f.write('x' * 100)\nimport atexit, os\natexit.register(lambda: print(os.path.getsize('/tmp/left')))\n",
    ),
    ("standard input", "import sys; print(repr(sys.stdin.read()), sys.stdin.isatty(), sys.stdin.encoding)"),
    ("input at the end of the file", "print('before')\ninput('? ')\n"),
    (
        "arguments",
        "import sys; print(sys.argv[1:], len(sys.argv), sys.argv[0] == __file__, sys.orig_argv[0], sys.orig_argv[2:], sys.flags)",
    ),
    (
        "environment",
        "import os; print(sorted(os.environ.items())); print(os.environb[b'VARIABLE'], os.getenv('NONE')); print(list(os.environ)); import posix; print(sorted(posix.environ))",
    ),
    (
        "environment of a child",
        "import subprocess; print(subprocess.run(['env'], capture_output=True, text=True).stdout)",
    ),
    (
        "a child of the shell",
        "import os, subprocess; print(os.system('echo $VARIABLE; exit 3')); print(subprocess.run('cat; ls -l /proc/self/fd | wc -l', shell=True, capture_output=True, text=True).stdout)",
    ),
    (
        "a variable that is taken away",
        "import os; del os.environ['VARIABLE']; print(os.system('echo [$VARIABLE]'), 'VARIABLE' in os.environ)",
    ),
    ("the folder", "import os; print(os.getcwd()); print(sorted(os.listdir('/proc/self/fd'))); print(os.umask(0))"),
    ("the group", "import os; print(os.getpgid(0) == os.getpid(), os.getppid(), os.getsid(0), os.nice(0))"),
    (
        "limits",
        "import resource; print([resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith('RLIMIT_')])",
    ),
    ("the cgroup", "print(open('/proc/self/cgroup').read(), open('/proc/self/oom_score_adj').read())"),
    (
        "names",
        "print(__name__, __file__, __doc__, __package__, __spec__, __builtins__, __annotations__, type(__loader__).__name__, __loader__.name, __loader__.path, __cached__, sorted(globals()))",
    ),
    ("the main module", "import sys; m = sys.modules['__main__']; print(m, m.__dict__ is globals(), vars(m).keys())"),
    ("the path", "import sys; print(sys.path, sys.path_hooks, sorted(sys.path_importer_cache), sys.meta_path)"),
    (
        "the modules",
        "import sys; print(sorted(sys.modules)); print(sys.executable, sys.prefix, sys.warnoptions, sys._xoptions, sys.dont_write_bytecode)",
    ),
    (
        "the stack",
        "import sys, traceback, inspect\ntraceback.print_stack()\nprint(len(inspect.stack()), sys._getframe().f_back)\n",
    ),
    ("recursion", "import sys\nprint(sys.getrecursionlimit())\ndef f(n): return f(n + 1)\nf(0)\n"),
    (
        "how deep recursion goes",
        "def f(n):\n    global deep\n    deep = n\n    f(n + 1)\ntry:\n    f(0)\nexcept RecursionError as error:\n    print(deep, error)\n",
    ),
    (
        "streams",
        "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr):\n    print(s, s.line_buffering, s.write_through, s.errors, s.seekable(), s.fileno(), sys.getfilesystemencoding())\nprint(sys.stdout.buffer, sys.stdout.buffer.raw)\n",
    ),
    ("unicode", "print('é€😀', ascii('é'), '\\ud800'.encode('utf-8', 'surrogatepass'))"),
    ("a text that can't be encoded", "print('\\ud800')"),
    ("a closed output", "import sys; print('a'); sys.stdout.close(); sys.stderr.write('b\\n')"),
    ("a closed descriptor", "import os; print('a'); os.close(1)"),
    ("a replaced output", "import io, sys; sys.stdout = io.StringIO(); print('lost'); sys.stderr.write('kept\\n')"),
    ("much output", "for i in range(20000): print(i, 'x' * 50)"),
    ("bytes that are no text", "import sys; sys.stdout.buffer.write(bytes(range(256)))"),
    ("both outputs", "import sys; print('out'); print('err', file=sys.stderr); print('out again')"),
    (
        "multiprocessing by fork",
        "import multiprocessing as m\ndef f(x): return x * x\nwith m.get_context('fork').Pool(2) as p: print(p.map(f, range(5)))\n",
    ),
    (
        "multiprocessing by spawn",
        "import multiprocessing as m\ndef f(q): q.put(__name__)\nif __name__ == '__main__':\n    c = m.get_context('spawn')\n    q = c.Queue(); p = c.Process(target=f, args=(q,)); p.start(); print(q.get()); p.join(); print(p.exitcode)\n",
    ),
    (
        "os.fork",
        "import os, sys\npid = os.fork()\nif pid == 0:\n    print('child'); sys.exit(9)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n",
    ),
    ("a module in the home folder", "import neighbour; print(neighbour.VALUE, neighbour.__file__)"),
    ("no such module", "import no_such_module_at_all"),
    ("a relative import", "from . import x"),
    (
        "a pickled class",
        "import pickle\nclass C: pass\nprint(pickle.loads(pickle.dumps(C())).__class__, C.__module__, C)\n",
    ),
    (
        "a type's hints",
        "import typing\nx: int = 1\nclass C:\n    y: 'C'\nprint(__annotations__, typing.get_type_hints(C))\n",
    ),
    (
        "warnings",
        "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\nx = '\\d'\n",
    ),
    ("a resource warning", "import warnings; warnings.simplefilter('always'); open('/etc/passwd'); print('end')"),
    (
        "faulthandler",
        "import faulthandler; faulthandler.enable(); faulthandler.dump_traceback(); print(faulthandler.is_enabled())",
    ),
    (
        "garbage",
        "import gc\nprint(gc.isenabled(), gc.get_threshold())\nclass C: pass\nc = C(); c.c = c; del c; print(gc.collect() >= 1)\n",
    ),
    ("asyncio", "import asyncio\nasync def f():\n    await asyncio.sleep(0.01); print('slept')\nasyncio.run(f())\n"),
    ("a debugger's end", "import pdb; pdb.set_trace()\nprint('on')\n"),
    ("a hook for exceptions", "import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1 / 0\n"),
    (
        "the source",
        "import inspect, sys\ndef f():\n    return 1\nprint(inspect.getsource(f), inspect.getsourcefile(sys.modules['__main__']) == __file__)\n",
    ),
    (
        "the site",
        "import site, sys; print(site.getsitepackages(), site.ENABLE_USER_SITE, exit, quit, copyright is not None, 'usercustomize' in sys.modules)",
    ),
    (
        "a timer",
        "import signal, time\nsignal.signal(signal.SIGALRM, lambda *a: print('alarm'))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(0.2)\n",
    ),
    (
        "a thread's switch",
        "import sys; print(sys.getswitchinterval(), sys.getrefcount(object()) > 0, sys.gettrace(), sys.getprofile())",
    ),
    // Ends that are told before the interpreter is taken apart, and what keeps them from being.
    (
        "finalizers of functions, closures and modules",
        "import types\nclass C:\n    def __init__(self, n): self.n = n\n    def __del__(self): print('gone', self.n)\ndef f(x=C('default')): pass\ndef g(c):\n    return lambda: c\nh = g(C('cell'))\nm = types.ModuleType('m'); m.c = C('module')\nimport sys; sys.kept = C('sys'); import builtins; builtins.kept = C('builtins')\nprint('end')\n",
    ),
    (
        "a finalizer without a dictionary",
        "class S:\n    __slots__ = ()\n    def __del__(self): print('slot')\ns = S()\nt = (S(), 1)\nprint('end')\n",
    ),
    (
        "a finalizer in a frozen heap",
        "import gc\nclass C:\n    def __del__(self): print('gone')\nc = C()\nimport sys; sys.kept = C()\ngc.freeze()\nprint('end')\n",
    ),
    (
        "a generator in the middle",
        "def g():\n    try: yield 1\n    finally: print('finally')\nx = g(); next(x); print('end')\n",
    ),
    ("a coroutine that was never awaited", "async def f(): pass\nx = f()\nprint('end')\n"),
    (
        "callbacks of weak references",
        "import weakref\nclass A: pass\na = A(); r = weakref.ref(a, lambda x: print('called')); l = [A()]; q = weakref.proxy(l[0], lambda x: print('proxy'))\nf = weakref.finalize(l[0], print, 'finalized')\nprint('end')\n",
    ),
    (
        "a metaclass with a finalizer",
        "class M(type):\n    def __del__(cls): print('class gone', cls.__name__)\n    def __eq__(self, other): print('compared'); return True\n    def __hash__(self): print('hashed'); return 1\nclass A(metaclass=M): pass\na = A()\nprint('end')\n",
    ),
    (
        "a binary file that is never closed",
        "f = open('/tmp/left', 'wb'); f.write(b'x' * 100)\nimport subprocess; p = subprocess.Popen('sleep 5; stat -c %s /tmp/left', shell=True)\n",
    ),
    (
        "exit codes that are given at the end",
        "import atexit, os\natexit.register(lambda: os._exit(6))\nprint('end', flush=True)\n",
    ),
    ("sys.exit without the names of a file", "import sys\ndel __file__, __cached__, __doc__\nsys.exit(3)\n"),
    (
        "no names at all",
        "import sys\ne = sys.exit\nfor n in list(globals()):\n    if n not in ('e', 'n'): del globals()[n]\ne(5)\n",
    ),
    ("an exception and a hook that is put back", "import sys\nprint('a')\nraise ValueError('x')\n"),
    (
        "callbacks that a program runs itself",
        "import atexit\natexit.register(print, 'called')\natexit._run_exitfuncs()\nprint('on')\nimport sys; sys.exit(2)\n",
    ),
    (
        "callbacks that are cleared",
        "import atexit\natexit.register(print, 'called')\natexit._clear()\nprint('on', end='')\n",
    ),
    ("a full output", "import sys\nsys.stdout = open('/dev/full', 'w')\nprint('lost')\n"),
    (
        "an output that can't be flushed",
        "import os\nfd = os.open('/dev/full', os.O_WRONLY)\nos.dup2(fd, 1)\nprint('lost')\n",
    ),
    (
        "an error in the last flush of errors",
        "import os, sys\nfd = os.open('/dev/full', os.O_WRONLY)\nos.dup2(fd, 2)\nsys.stderr.write('lost')\nprint('kept')\n",
    ),
    ("a kill", "import os, signal\nprint('a', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"),
    (
        "a kill in the last callback",
        "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGKILL))\nprint('a')\n",
    ),
    (
        "another program in its place",
        "import os\nprint('a', flush=True)\nos.execv('/bin/sh', ['sh', '-c', 'echo b; exit 9'])\n",
    ),
    (
        "a child that goes on",
        "import os\nprint('a', flush=True)\nif os.fork() == 0:\n    import time; time.sleep(0.05); print('child')\nelse:\n    os.wait(); print('parent')\n",
    ),
    (
        "children that end as their parent does",
        "import os, sys\nfor n in range(3):\n    if os.fork() == 0: break\n    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)\nelse:\n    n = 3\nprint('end', n)\nsys.exit(n) if n == 2 else None\n",
    ),
    ("the user of nobody", "import os\nos.setgid(65534); os.setuid(65534)\nprint(os.getuid())\n"),
    (
        "descriptors that are closed",
        "import os\nprint('a', flush=True)\nos.closerange(3, 1000)\nos.close(2)\nprint('b')\n",
    ),
    (
        "another main module",
        "import sys, types\nm = sys.modules['__main__'] = types.ModuleType('other')\nclass C:\n    def __del__(self): print('gone')\nm.c = C()\nprint('end')\n",
    ),
    (
        "what is left after collections",
        "import json, re, random, collections, datetime, functools, enum, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nclass E(enum.Enum):\n    A = 1\nprint(json.dumps({'a': [1]}), re.findall('a+', 'baab'), P(1), E.A, len(str(random.random())) > 1)\n",
    ),
    ("a logger", "import logging\nlogging.basicConfig(level=logging.INFO)\nlogging.info('told')\n"),
    (
        "an executor",
        "import concurrent.futures as c\ne = c.ThreadPoolExecutor(2)\nprint(list(e.map(lambda x: x * 2, range(3))))\ne.submit(lambda: print('late'))\n",
    ),
    (
        "a temporary folder",
        "import tempfile, os, atexit\nt = tempfile.TemporaryDirectory()\natexit.register(lambda: print(os.path.isdir(t.name)))\n",
    ),
    ("a switched standard input", "import io, sys\nsys.stdin = io.StringIO('x'); print(input())\n"),
];
