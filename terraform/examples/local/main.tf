# A fleet of Atoll nodes on this machine: `terraform apply` returns when the mesh is ready, `terraform destroy` when
# nothing is left of it. Built-in providers only, so `terraform init` needs no network.

terraform {
  required_version = ">= 1.4" # terraform_data
}

locals {
  repository     = abspath("${path.module}/../../..")
  regions_folder = var.regions_folder != "" ? var.regions_folder : "${local.repository}/regions"
  work_folder    = var.work_folder != "" ? var.work_folder : local.repository
  data           = abspath(var.data != "" ? var.data : "${local.repository}/.atoll/terraform")

  # The same descriptors that the program reads: <code>.json for each region.
  descriptors = {
    for file in fileset(local.regions_folder, "*.json") :
    trimsuffix(file, ".json") => jsondecode(file("${local.regions_folder}/${file}"))
  }

  # Node j of region i of R listens for HTTP on port_base + i + R * j, and for the fabric on UDP 1000 above; node 0 is its
  # region's endpoint.
  nodes = merge([
    for i, code in var.regions : {
      for j in range(var.nodes_per_region) : "${code}-${j + 1}" => {
        region = code
        http   = var.port_base + i + length(var.regions) * j
        fabric = var.port_base + 1000 + i + length(var.regions) * j
      }
    }
  ]...)
}

# One resource for the fleet: a change of anything here replaces it.
resource "terraform_data" "fleet" {
  # A destroy provisioner sees nothing but its own resource, so all that it needs stands in the input.
  input = {
    atoll_bin   = var.atoll_bin
    repository  = local.repository
    work_folder = local.work_folder
    data        = local.data
  }

  triggers_replace = [
    var.atoll_bin, local.work_folder, local.data, var.regions, var.nodes_per_region, var.port_base, var.pool,
    var.hypervisor,
  ]

  lifecycle {
    precondition {
      condition     = length(setsubtract(var.regions, keys(local.descriptors))) == 0
      error_message = "No descriptor <code>.json in ${local.regions_folder} for: ${join(", ", setsubtract(var.regions, keys(local.descriptors)))}."
    }
  }

  provisioner "local-exec" {
    working_dir = self.input.work_folder
    interpreter = ["/bin/sh", "-ec"]
    environment = {
      ATOLL_BIN  = self.input.atoll_bin
      REPOSITORY = self.input.repository
      DATA       = self.input.data
      REGIONS    = join(",", var.regions)
      NODES      = var.nodes_per_region
      PORT_BASE  = var.port_base
      POOL       = var.pool
      HYPERVISOR = var.hypervisor
    }
    command = <<-EOT
      atoll="$${ATOLL_BIN:-$(command -v atoll || echo "$REPOSITORY/target/release/atoll")}"
      exec "$atoll" dev --detach --data "$DATA" --regions "$REGIONS" --nodes-per-region "$NODES" \
        --port-base "$PORT_BASE" --pool "$POOL" --hypervisor "$HYPERVISOR"
    EOT
  }

  provisioner "local-exec" {
    when        = destroy
    working_dir = self.input.work_folder
    interpreter = ["/bin/sh", "-ec"]
    environment = {
      ATOLL_BIN  = self.input.atoll_bin
      REPOSITORY = self.input.repository
      DATA       = self.input.data
    }
    command = <<-EOT
      # A fleet whose folder is gone, or whose start failed before there was one, is down already.
      [ -e "$DATA/dev.json" ] || exit 0
      atoll="$${ATOLL_BIN:-$(command -v atoll || echo "$REPOSITORY/target/release/atoll")}"
      exec "$atoll" dev stop --data "$DATA"
    EOT
  }
}
