# A plain client: one REQ socket of pyzmq, connected to one name. If a request gets no reply, a
# new socket sends it again, as the ZeroMQ guide recommends. On SIGTERM it prints its counts.
import json
import signal
import sys
import time

import zmq

is_over = False


def end(*_):
    global is_over
    is_over = True


def connect():
    client = zmq.Context.instance().socket(zmq.REQ)
    client.linger = 0
    client.connect(sys.argv[1])
    return client


signal.signal(signal.SIGTERM, end)
client = connect()
due = answered = retried = 0
while not is_over:
    payload = b"%d" % due
    due += 1
    for attempt in range(5):
        retried += attempt > 0
        client.send(payload)
        if client.poll(2000):
            assert client.recv() == payload
            answered += 1
            break
        client.close()
        client = connect()
    if answered == 1:
        print("answered", flush=True)
    time.sleep(0.01)
print(json.dumps({"due": due, "answered": answered, "retried": retried}), flush=True)
