"""The client under test: runs every case that the fuzzing server at URL has, through `gowsev.Dial`.

usage: echo_client.py URL [takeover]    `takeover` lets both sides keep their compression contexts
"""

import dataclasses
import sys

import gowsev

OPTIONS = gowsev.Options(max_message_bytes=64 << 20, compression="deflate", close_timeout=2.0)


def run_case(url, options):
    try:
        with gowsev.Dial(url, options=options, proxy=None) as conn:
            while True:
                conn.WriteMessage(*conn.ReadMessage())
    except gowsev.ConnectionClosed:
        return  # every case ends with this


def main(url, *mode):
    options = dataclasses.replace(OPTIONS, compression_takeover=mode == ("takeover",))
    with gowsev.Dial(f"{url}/getCaseCount", proxy=None) as conn:
        count = int(conn.ReadMessage()[1])
    for case in range(1, count + 1):
        run_case(f"{url}/runCase?case={case}&agent=gowsev", options)


if __name__ == "__main__":
    main(*sys.argv[1:])
