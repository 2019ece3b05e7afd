"""audiocraft imports only after the package's patches, whatever a test imports first."""

import musae_utils.models.compat  # noqa: F401
