"""MAX's model worker does not outlive a server that is killed; others do."""

import os
import subprocess
import sys
import textwrap

import psutil
import pytest

SERVER = textwrap.dedent("""
    import multiprocessing
    import sys
    import time


    def work():
        from max_mistral.workarounds.orphans import end_with_the_server

        end_with_the_server()
        print("ready", flush=True)
        time.sleep(600)


    if __name__ == "__main__":
        spawn = multiprocessing.get_context("spawn")
        worker = spawn.Process(target=work, name=sys.argv[1], daemon=True)
        worker.start()
        print(worker.pid, flush=True)
        worker.join()
""")


@pytest.mark.parametrize(
    ("name", "ends"), [("Model Worker", True), ("A loader of data", False)]
)
def test_a_worker_ends_with_its_server(tmp_path, name, ends):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen(
        [sys.executable, script, name],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert server.stdout is not None
    worker = psutil.Process(int(server.stdout.readline()))
    try:
        assert server.stdout.readline() == "ready\n"
        assert worker.is_running()
        server.kill()
        server.wait()
        gone, alive = psutil.wait_procs([worker], timeout=60 if ends else 2)
        assert [p.pid for p in (gone if ends else alive)] == [worker.pid]
    finally:
        if worker.is_running():
            worker.kill()
        server.stdout.close()
