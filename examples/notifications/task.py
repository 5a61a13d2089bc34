"""A process of its own that notifies a user or a room: a cron script, or the body of a task in a queue.

python task.py user:1 "Your report is ready"
"""

import argparse
import json
import os

import store

from gowsev.channels import ChannelsError, Remote

URL = os.environ.get("REDIS_URL") or "redis://localhost:6379/0"


def notify(channel, text):
    """Store a notice and tell it; return its position, or `None` where the app has to tell it later. Blocks."""
    notice = store.add_notice(channel, "task.py", text)
    try:
        with Remote(URL) as remote:
            position = remote.Publish(channel, json.dumps(notice), key=f"notice {notice['id']}")
    except ChannelsError:
        store.not_told(notice["id"])
        return None
    store.told(notice["id"])
    return position


def main():
    parser = argparse.ArgumentParser(description="Notify a user or a room.", allow_abbrev=False)
    parser.add_argument("channel", help="user:ID or room:ID")
    parser.add_argument("text", help="what to say")
    arguments = parser.parse_args()
    print(notify(arguments.channel, arguments.text) or "stored; the app will tell it")


if __name__ == "__main__":
    main()
