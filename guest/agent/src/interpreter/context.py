# A stateful interpreter: runs one text after another in one namespace.
#
#   agent -> argv[1]   8 digits, the length of what follows; JSON {"code": text, "env": {name: value}}
#   agent <- argv[2]   lines of JSON: {"result": text} | {"error": [name, value, traceback]} |
#                      {"end": whether an interrupt ended it}
#
# What the texts print goes to standard output and standard error as ever.
import ast
import json
import linecache
import os
import signal
import sys
import traceback
import types

# Characters of a result or a traceback that are passed on: what a person still reads.
TEXT_MAX = 1 << 20


class Interpreter:
    def __init__(self, requests, replies):
        self.requests = requests
        self.replies = replies
        self.running = False
        self.count = 0
        self.module = types.ModuleType("__main__")
        self.module.__annotations__ = {}
        sys.modules["__main__"] = self.module

    def on_interrupt(self, number, frame):
        # One that comes when nothing runs is for nobody.
        if self.running:
            raise KeyboardInterrupt

    def flush(self):
        """What was printed is there before what follows it."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass

    def tell(self, **reply):
        self.flush()
        self.replies.write(json.dumps(reply) + "\n")
        self.replies.flush()

    def serve(self):
        while True:
            head = self.requests.read(8)
            if len(head) < 8:
                return
            request = json.loads(self.requests.read(int(head)))
            self.count += 1
            interrupted = False
            try:
                interrupted = self.run(request["code"], request["env"])
            except KeyboardInterrupt:
                interrupted = True
            self.running = False
            self.tell(end=interrupted)

    def run(self, code, env):
        name = f"<input {self.count}>"
        before = {key: os.environ.get(key) for key in env}
        os.environ.update(env)
        try:
            self.running = True
            value = self.evaluate(code, name)
            self.running = False
            if value is not None:
                self.tell(result=value[:TEXT_MAX])
            return False
        except BaseException as error:
            self.running = False
            self.tell(error=self.described(error))
            return isinstance(error, KeyboardInterrupt)
        finally:
            self.running = False
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value

    def evaluate(self, code, name):
        """Runs a text; if its last statement is an expression, gives what repr makes of its value."""
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = compile(ast.Expression(tree.body.pop().value), name, "eval")
        space = self.module.__dict__
        exec(compile(tree, name, "exec"), space)
        if last is None:
            return None
        value = eval(last, space)
        if value is None:
            return None
        space["_"] = value
        return repr(value)

    def described(self, error):
        # The frames of this file are not the text's.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        try:
            value = str(error)
        except Exception:
            value = "<exception str() failed>"
        lines = traceback.format_exception(type(error), error, trace)
        return [type(error).__name__, value[:TEXT_MAX], "".join(lines)[:TEXT_MAX]]


def main():
    requests, replies = open(sys.argv[1], "rb"), open(sys.argv[2], "w", encoding="utf-8", errors="backslashreplace")
    interpreter = Interpreter(requests, replies)
    signal.signal(signal.SIGINT, interpreter.on_interrupt)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv[:] = [""]
    sys.path[0] = ""
    interpreter.tell(ready=True)
    interpreter.serve()


main()
# What a text left running doesn't hold the end up.
os._exit(0)
