variable "node" {
  description = "The node's id: its region's code, a dash and a number, as in fra-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,7}-[1-9][0-9]*$", var.node))
    error_message = "node must be a region's code, a dash and a number, as in fra-1."
  }
}

variable "http" {
  description = "Where HTTP is served, ADDRESS:PORT."
  type        = string
}

variable "fabric" {
  description = "Where the fabric listens (UDP), ADDRESS:PORT."
  type        = string
}

variable "public_url" {
  description = "The base URL that clients use for this node."
  type        = string
}

variable "regions" {
  description = "Regions of the mesh and their endpoints."
  type        = map(string)
}

variable "peers" {
  description = "Nodes known from the start and their fabric addresses, this one among them."
  type        = map(string)
}

variable "catalog_voters" {
  description = "First voters of the catalog group: an odd number of nodes, spread over regions."
  type        = list(string)

  validation {
    condition     = length(var.catalog_voters) % 2 == 1
    error_message = "catalog_voters must be an odd number of nodes."
  }
}

variable "region_voters" {
  description = "First voters of this region's placement group: 1, 3 or 5 of its nodes."
  type        = list(string)

  validation {
    condition     = contains([1, 3, 5], length(var.region_voters))
    error_message = "region_voters must be 1, 3 or 5 nodes."
  }
}

variable "limits" {
  description = "What the host gives to sandboxes, before the overcommit factors."
  type        = object({ vcpus = number, memory_mib = number, disk_gib = number })
}

variable "overcommit" {
  description = "How much more than it has the node promises."
  type        = object({ vcpus = number, memory = number, disk = number })
  default     = { vcpus = 16, memory = 4, disk = 4 }
}

variable "hypervisor" {
  description = "auto, cloud_hypervisor or qemu."
  type        = string
  default     = "auto"
}

variable "accel" {
  description = "auto, kvm or tcg. On a host that must never translate, kvm: the node then refuses to start without it."
  type        = string
  default     = "auto"
}

variable "pool" {
  description = "Warm clones of the default shape."
  type        = number
  default     = 16
}

variable "image" {
  description = "The folder with a finished guest image."
  type        = string
  default     = "/var/lib/atoll/image"
}

variable "data" {
  description = "The node's own folder: stores, sandboxes, identity. On a disk that survives the host's restart."
  type        = string
  default     = "/var/lib/atoll/node"
}

variable "run" {
  description = "The short folder for sockets; the unit makes /run/atoll."
  type        = string
  default     = "/run/atoll"
}

variable "atoll_bin" {
  description = "The program on the host."
  type        = string
  default     = "/usr/local/bin/atoll"
}

variable "bootstrap_key" {
  description = "The first API key by its hash, for a catalog that has none; null on all nodes but one."
  type        = object({ id = string, name = string, hash = string, organization = string, shown = string })
  default     = null
}
