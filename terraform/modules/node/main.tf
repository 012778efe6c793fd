# One node on a real host, as text: unit, configuration, kernel settings. Nothing is created.

terraform {
  required_version = ">= 1.4"
}

locals {
  unit = templatefile("${path.module}/atoll-node.service.tftpl", {
    node      = var.node
    atoll_bin = var.atoll_bin
    data      = var.data
    image     = var.image
  })

  config = templatefile("${path.module}/node.toml.tftpl", {
    node           = var.node
    data           = var.data
    run            = var.run
    image          = var.image
    http           = var.http
    public_url     = var.public_url
    fabric         = var.fabric
    hypervisor     = var.hypervisor
    accel          = var.accel
    pool           = var.pool
    limits         = var.limits
    overcommit     = var.overcommit
    regions        = var.regions
    peers          = var.peers
    catalog_voters = var.catalog_voters
    region_voters  = var.region_voters
    bootstrap_key  = var.bootstrap_key
  })

  # A QUIC endpoint of many connections fills the default socket buffers (208 KiB) in a moment.
  sysctl = <<-EOT
    net.core.rmem_max = 4194304
    net.core.wmem_max = 4194304
  EOT
}
