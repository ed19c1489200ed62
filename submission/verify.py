"""Try a submission as the challenge's evaluation does, before the evaluation does.

    python submission/verify.py --bundle_dir bundle
    python submission/verify.py --url http://localhost:8080

Starts the server of a bundle that scripts/prepare_submission.py wrote, or takes one that runs. Sends what HELM sends:
the organisers' health check, a request of every scenario's shape, 30 at once, prompts at and beyond the window; and
what the world sends: broken bodies, clients that hang up. Prints what passed, and of what failed the request as a
command to copy (a long one goes to verify-failures/). Exit code 0: nothing failed.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("verify", __doc__)
