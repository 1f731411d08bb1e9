"""What went wrong on the command line itself."""

from ..errors import UserError


class UsageError(UserError):
    """Flags or arguments that cannot be meant so; exits with status 2."""

    exit_code = 2
