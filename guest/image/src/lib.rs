//! Builds the guest image from Debian's packages: kernel, initramfs with the agent, root file system.
